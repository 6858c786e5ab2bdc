# shellcheck shell=bash
# A second base, of the Debian that is being made: for what the first does not have yet.

part newer-base "" build_newer_base

# No `apt-get update`: a root that debootstrap has just made is of today, and has the lists it was made from. They say
# they are good for a week only, so a machine that asks a mirror behind the times would take no newer ones.
build_newer_base() {
  local root=$PWD/root scripts=/usr/share/debootstrap
  # A release that came after this machine's debootstrap: all are made as sid is.
  if ! [ -e "$scripts/scripts/$newer_debian_release" ]; then
    cp -r "$scripts" "$scratch/debootstrap"
    ln -s sid "$scratch/debootstrap/scripts/$newer_debian_release"
    scripts=$scratch/debootstrap
  fi
  DEBOOTSTRAP_DIR=$scripts debootstrap --variant=minbase --include=ca-certificates "$newer_debian_release" "$root" "$debian_mirror"
  {
    printf 'path-exclude=/usr/share/%s/*\n' doc man info locale lintian bash-completion
    echo 'path-include=/usr/share/doc/*/copyright'
    echo force-unsafe-io
  } >"$root/etc/dpkg/dpkg.cfg.d/slim"
  echo 'Acquire::Check-Valid-Until "false";' >"$root/etc/apt/apt.conf.d/any-age"
  printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # no service starts in a root
  chmod 755 "$root/usr/sbin/policy-rc.d"
  strip_root "$root"
  list_of "$root" | wanted_in_layer >"$scratch/list"
  pack_layer "$root" "$scratch/list" >layers
  cp layers blobs
}
