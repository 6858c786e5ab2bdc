# shellcheck shell=bash
# Debian parts: a root made by debootstrap, and layers on it made by what an installation changed.

readonly debian_release=bookworm newer_debian_release=forky
debian_mirror=

# Sets debian_mirror: the one named in DEVENV_DEBIAN_MIRROR, else the one that this machine's apt takes Debian from, else
# debootstrap's own.
find_debian_mirror() {
  debian_mirror=${DEVENV_DEBIAN_MIRROR:-}
  if [ -z "$debian_mirror" ]; then
    # shellcheck disable=SC2016
    debian_mirror=$({ apt-get indextargets --format '$(ORIGIN)/$(LABEL) $(REPO_URI)' 'Identifier: Packages' 2>/dev/null || true; } |
      awk '$1 == "Debian/Debian" && $2 ~ /^https?:/ && !found++ {print $2}')
  fi
  if [ -z "$debian_mirror" ]; then
    debian_mirror=$(sed -n 's/^DEF_MIRROR="\(.*\)"$/\1/p' "$(command -v debootstrap)")
  fi
  debian_mirror=${debian_mirror%/}
}

# Never in a layer: what belongs to the machine that builds, or can be fetched again.
readonly outside_layers='^\./(dev|proc|sys|tmp|run|var/cache|var/log|var/lib/apt/lists)/|^\./(etc/resolv\.conf|etc/[^/]*-|usr/sbin/policy-rc\.d|var/lib/dpkg/[^/]*-old)$|__pycache__'

# With `with_proc` set, the program finds /proc: in a mount namespace that ends with it, so nothing is left mounted.
in_root() {
  local root=$1 enter=(chroot "$1")
  shift
  if [ -n "${with_proc:-}" ]; then
    # shellcheck disable=SC2016
    enter=(unshare --mount sh -c 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"' "$root")
  fi
  "${enter[@]}" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
    DEBIAN_FRONTEND=noninteractive SYSTEMD_OFFLINE=1 http_proxy="${http_proxy:-}" https_proxy="${https_proxy:-}" no_proxy="${no_proxy:-}" "$@"
}

# Packages can have gone from the mirror since the lists were read: then the lists are read again, once.
install_packages() {
  local root=$1
  shift
  cp -L /etc/resolv.conf "$root/etc/resolv.conf"
  in_root "$root" apt-get install -y -q --no-install-recommends "$@" || {
    in_root "$root" apt-get update -q
    in_root "$root" apt-get install -y -q --no-install-recommends "$@"
  }
}

list_of() { (cd "$1" && find . -mindepth 1 -printf '%p\n' | LC_ALL=C sort); }

wanted_in_layer() { grep -Ev "$outside_layers" || [ $? -eq 1 ]; }

# A copy of the base, or of another part's root, to install into, as $scratch/root.
copy_of_base() {
  local result
  result_of "${1:-base}"
  cp -a --reflink=auto "$result/root" "$scratch/root"
  list_of "$scratch/root" >"$scratch/before"
  touch "$scratch/copied"
  sleep 0.05 # what is changed from here on is newer, by the clock that files are stamped with
}

# Packs what was changed in $scratch/root since copy_of_base, and prints the layer. What was removed is marked so.
pack_changes() {
  local root=$scratch/root path
  list_of "$root" >"$scratch/after"
  LC_ALL=C comm -23 "$scratch/before" "$scratch/after" | wanted_in_layer >"$scratch/removed"
  while read -r path; do
    if [ -d "$root/${path%/*}" ]; then # else its folder is gone as well, and that mark is enough
      : >"$root/${path%/*}/.wh.${path##*/}"
    fi
  done <"$scratch/removed"
  (cd "$root" && find . -mindepth 1 -cnewer "$scratch/copied" -printf '%p\n' | LC_ALL=C sort) | wanted_in_layer >"$scratch/changed"
  pack_layer "$root" "$scratch/changed"
}

# files_of_packages <root> <tree> <package>…: what these packages brought into the root, copied to the tree, less what
# only people and compilers read.
files_of_packages() {
  local root=$1 tree=$2 name
  shift 2
  in_root "$root" dpkg-query -L "$@" |
    sed -E 's#^/(bin|sbin|lib|lib64)/#/usr/\1/#' | grep -E '^/(usr/(sbin|lib|lib64)|etc)/' | LC_ALL=C sort -u |
    while read -r name; do
      if [ -L "$root$name" ] || [ -f "$root$name" ]; then echo "${name#/}"; fi
    done | grep -v /gconv/ >"$scratch/files"
  tar -C "$root" --files-from "$scratch/files" -cf - | tar -C "$tree" -xf -
}
