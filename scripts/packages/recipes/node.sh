# shellcheck shell=bash
# The node image for kind: Debian with systemd, containerd and Kubernetes, and the images of the control plane in its
# containerd. kind's own module says what must be where (images/base, pkg/build/nodeimage).

offer packages.devenv.test/node:1.34.4 image/node
part image/node "image/kubernetes image/etcd image/coredns image/pause image/local-path-provisioner image/helper node-root program/containerd program/ctr program/containerd-shim-runc-v2 program/kube" \
  build_node "$packages/node/10-ptp.conflist" "$packages/node/default-cni.yaml" "$packages/runc-wrapper"
part node-root base build_node_root
part busybox base build_busybox
part image/kubernetes "node-root busybox static program/kube" build_kubernetes "$packages/node/iptables"
part image/etcd "static program/etcd" build_etcd
part image/coredns "static program/coredns" build_coredns
part image/local-path-provisioner "static program/local-path-provisioner" build_local_path_provisioner
part image/helper "static busybox" build_helper
part image/pause "" build_pause "$packages/node/pause.c"

readonly path_variable=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# The names by which kubeadm 1.34.4 and kind 0.33.0 ask for these: they come from no registry here.
images_in_node() {
  local component
  for component in apiserver controller-manager scheduler proxy; do
    echo "registry.k8s.io/kube-$component:v1.34.4 image/kubernetes"
  done
  echo "registry.k8s.io/etcd:3.6.5-0 image/etcd"
  echo "registry.k8s.io/coredns/coredns:v1.12.1 image/coredns"
  echo "registry.k8s.io/pause:3.10 image/pause"   # containerd's configuration
  echo "registry.k8s.io/pause:3.10.1 image/pause" # kubeadm
  echo "$(storage_image storageProvisionerImage) image/local-path-provisioner"
  echo "$(storage_image storageHelperImage) image/helper"
}

kind_module() { module_folder world sigs.k8s.io/kind; }

storage_source() { cat "$(kind_module)/pkg/build/nodeimage/const_storage.go"; }

storage_image() { storage_source | sed -nE "s/^const $1 = \"(.*)\"/\1/p"; }

# The manifest is a Go string, with the two images' names added in between.
storage_manifest() {
  storage_source | sed -e '1,/^const defaultStorageManifest = `/d' -e '/^`$/,$d' \
    -e "s#\` + storageProvisionerImage + \`#$(storage_image storageProvisionerImage)#" \
    -e "s#\` + storageHelperImage + \`#$(storage_image storageHelperImage)#"
}

# The packages of kind's own base, less what serves network volumes and rootless hosts.
build_node_root() {
  copy_of_base
  install_packages "$scratch/root" systemd conntrack iptables nftables iproute2 ethtool util-linux mount kmod libseccomp2 \
    pigz bash ca-certificates curl jq procps runc containernetworking-plugins
  : >"$scratch/root/etc/machine-id" # each node gets its own at its start; a random one would make every build differ
  pack_changes >layers
  cp layers blobs
  mv "$scratch/root" root
}

build_busybox() {
  copy_of_base
  (cd "$scratch/root/tmp" && in_root "$scratch/root" sh -c 'cd /tmp && apt-get update -q && apt-get download busybox-static')
  in_root "$scratch/root" sh -c 'dpkg-deb -x /tmp/busybox-static_*.deb /tmp/busybox'
  cp "$scratch/root/tmp/busybox/bin/busybox" busybox
}

# One image for the four components, so a node unpacks one layer and not four: the program under all its names,
# iptables with the libraries it loads, a shell for the wrapper.
build_kubernetes() {
  local tree=$scratch/tree result name
  mkdir -p "$tree"/usr/{bin,sbin,lib,lib64,local/bin}
  for name in bin sbin lib lib64; do ln -s "usr/$name" "$tree/$name"; done
  result_of node-root
  in_root "$result/root" dpkg-query -L libc6 iptables libip4tc2 libip6tc2 libxtables12 libnftnl11 libmnl0 libnetfilter-conntrack3 libnfnetlink0 netbase |
    sed -E 's#^/(bin|sbin|lib|lib64)/#/usr/\1/#' | grep -E '^/(usr/(sbin|lib|lib64)|etc)/' | LC_ALL=C sort -u |
    while read -r name; do
      if [ -L "$result/root$name" ] || [ -f "$result/root$name" ]; then echo "${name#/}"; fi
    done | grep -v /gconv/ >"$scratch/files"
  tar -C "$result/root" --files-from "$scratch/files" -cf - | tar -C "$tree" -xf -
  result_of busybox
  install -m 755 "$result/busybox" "$tree/usr/bin/busybox"
  for name in sh grep ln mv cat ls; do ln -s busybox "$tree/usr/bin/$name"; done
  for name in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
    install -m 755 "$packages/node/iptables" "$tree/usr/sbin/$name.new"
    mv -f "$tree/usr/sbin/$name.new" "$tree/usr/sbin/$name"
  done
  install -m 755 "$(program_path kube)" "$tree/usr/local/bin/kube"
  for name in kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubectl; do
    ln -s kube "$tree/usr/local/bin/$name"
  done
  { layers_of static && pack_layer "$tree"; } >"$scratch/layers"
  make_image "{\"Env\": [\"$path_variable\"]}" "$scratch/layers"
}

build_etcd() {
  static_image "{\"Env\": [\"$path_variable\"], \"Entrypoint\": [\"/usr/local/bin/etcd\"]}" /usr/local/bin/etcd "$(program_path etcd)"
}

build_coredns() {
  static_image '{"Entrypoint": ["/coredns"], "WorkingDir": "/"}' /coredns "$(program_path coredns)"
}

build_local_path_provisioner() {
  static_image "{\"Env\": [\"$path_variable\"], \"Entrypoint\": [\"/usr/bin/local-path-provisioner\"]}" \
    /usr/bin/local-path-provisioner "$(program_path local-path-provisioner)"
}

# Makes and removes the folders of volumes: a shell, mkdir, rm.
build_helper() {
  local tree=$scratch/tree result name
  result_of busybox
  install -D -m 755 "$result/busybox" "$tree/bin/busybox"
  for name in sh mkdir rm chmod ls cat sleep; do ln -s busybox "$tree/bin/$name"; done
  { layers_of static && pack_layer "$tree"; } >"$scratch/layers"
  make_image '{"Env": ["PATH=/bin"], "Entrypoint": ["/bin/sh"]}' "$scratch/layers"
}

build_pause() {
  local tree=$scratch/tree
  mkdir -p "$tree"
  cc -static -Os -s -Wall -Wextra -Werror -o "$tree/pause" "$packages/node/pause.c"
  pack_layer "$tree" >"$scratch/layers"
  make_image '{"Entrypoint": ["/pause"], "User": "65535:65535"}' "$scratch/layers"
}

build_node() {
  local tree=$scratch/tree name result
  mkdir -p "$tree"/usr/{bin,lib} "$tree"/usr/local/{bin,sbin} "$tree"/etc/{cni/net.d,kubernetes/manifests,systemd/system} "$tree"/kind/manifests \
    "$tree/opt/cni/bin" "$tree/var/lib"
  copy_kind_files "$tree"
  for name in containerd ctr containerd-shim-runc-v2; do
    install -m 755 "$(program_path $name)" "$tree/usr/local/bin/"
  done
  install -m 755 "$(program_path kube)" "$tree/usr/bin/kube"
  for name in kubelet kubeadm kubectl; do ln -s kube "$tree/usr/bin/$name"; done
  # Found before Debian's own in /usr/sbin, and starts that. Only where the host withholds something does it more.
  install -m 755 "$packages/runc-wrapper" "$tree/usr/local/sbin/runc"
  result_of node-root
  for name in host-local loopback ptp portmap bridge; do
    install -m 755 "$result/root/usr/lib/cni/$name" "$tree/opt/cni/bin/"
  done
  cp "$packages/node/10-ptp.conflist" "$tree/etc/cni/net.d/"
  cp "$packages/node/default-cni.yaml" "$tree/kind/manifests/"
  storage_manifest >"$tree/kind/manifests/default-storage.yaml"
  grep -q StorageClass "$tree/kind/manifests/default-storage.yaml"
  printf v1.34.4 >"$tree/kind/version"
  arrange_units "$result/root" "$tree"
  configure_containerd "$tree"
  import_images "$tree"
  {
    layers_of base
    layers_of node-root
    pack_layer "$tree"
  } >"$scratch/layers"
  make_image "{
    \"Env\": [\"$path_variable\", \"container=docker\"], \"Entrypoint\": [\"/usr/local/bin/entrypoint\", \"/sbin/init\"],
    \"StopSignal\": \"SIGRTMIN+3\",
    \"Labels\": {\"org.opencontainers.image.title\": \"kind node\", \"org.opencontainers.image.version\": \"1.34.4\",
      \"org.opencontainers.image.description\": \"built from package registries by devenv, not kindest/node\"}}" "$scratch/layers"
}

# Scripts may run, the rest may be read: as kind's Dockerfile copies them.
copy_kind_files() {
  local files name
  files=$(kind_module)/images/base/files
  cp -r --no-preserve=mode,ownership "$files"/{etc,kind} "$1/"
  for name in "$files"/usr/local/bin/*; do install -m 755 "$name" "$1/usr/local/bin/"; done
  chmod 755 "$1"/kind/bin/*
  rm -f "$1/usr/local/bin/clean-install" "$1/etc/crictl.yaml" # the image holds no crictl: no package registry has it
}

# The units that a node needs, and none of those that Debian starts. Removed files of the layers below are marked.
arrange_units() {
  local root=$1 tree=$2 path name
  (
    cd "$root" || exit
    find usr/lib/systemd/system/{multi-user,local-fs,basic}.target.wants etc/systemd/system/*.wants \
      usr/lib/systemd/system/sysinit.target.wants/systemd-tmpfiles-setup.service \
      usr/lib/systemd/system/sockets.target.wants/*{udev,initctl}* ! -type d 2>/dev/null || true # some are not there
  ) |
    while read -r path; do
      mkdir -p "$tree/${path%/*}"
      : >"$tree/${path%/*}/.wh.${path##*/}"
    done
  mkdir -p "$tree"/etc/systemd/{system/multi-user.target.wants,journald.conf.d}
  for name in kubelet containerd undo-mount-hacks; do
    ln -s "/etc/systemd/system/$name.service" "$tree/etc/systemd/system/multi-user.target.wants/"
  done
  ln -s /dev/null "$tree/etc/systemd/system/systemd-binfmt.service" # would change the host's kernel
  printf '[Journal]\nReadKMsg=no\n' >"$tree/etc/systemd/journald.conf.d/kind.conf"
  mkdir -p "$tree/usr/sbin"
  ln -s /lib/systemd/systemd "$tree/usr/sbin/init"
}

configure_containerd() {
  local configuration=$1/etc/containerd/config.toml
  # Root without CAP_SYS_RESOURCE may not lower a score below its own; where it may, its own is -999 already.
  sed -i 's/restrict_oom_score_adj = false/restrict_oom_score_adj = true/' "$configuration"
  grep -q 'restrict_oom_score_adj = true' "$configuration"
  grep -q 'registry.k8s.io/pause:3.10"' "$configuration"
  "$(program_path ctr)" oci spec | jq '.hooks.createContainer += [{"path": "/kind/bin/mount-product-files.sh"}] | del(.process.rlimits)' \
    >"$1/etc/containerd/cri-base.json"
}

# Lets a containerd of our own write what the node's will read. It ends with this script, whatever ends this script.
import_images() {
  local tree=$1 home=$scratch/containerd name part result pairs=() address
  address=$home/socket
  mkdir -p "$home"
  {
    echo 'version = 3'
    echo 'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt"]'
  } >"$home/config.toml"
  setpriv --pdeathsig KILL "$(program_path containerd)" --config "$home/config.toml" --root "$home/root" --state "$home/state" \
    --address "$address" 9>&- &
  local daemon=$! until=$((SECONDS + 30))
  until "$(program_path ctr)" --address "$address" version >/dev/null 2>&1; do
    if [ "$SECONDS" -ge "$until" ]; then
      echo "containerd did not answer within 30 s"
      return 1
    fi
    sleep 0.1
  done
  while read -r name part; do
    result_of "$part"
    pairs+=("$name" "$result")
  done < <(images_in_node)
  layout_archive "${pairs[@]}" >"$scratch/images.tar"
  "$(program_path ctr)" --address "$address" -n k8s.io images import --no-unpack --local "$scratch/images.tar"
  "$(program_path ctr)" --address "$address" -n k8s.io images list
  kill "$daemon"
  wait "$daemon" || true
  mv "$home/root" "$tree/var/lib/containerd"
}
