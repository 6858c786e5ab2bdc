# shellcheck shell=bash
# A node image for k3d that is not k3s, which no package registry has: the kind node image, all of its layers, and one more
# with a program called k3s that speaks k3s's command line (k3s-compatible/k3s says what it can't do).

offer packages.devenv.test/k3s-compatible:1.34.4 image/k3s-compatible
part image/k3s-compatible "image/node program/etcd program/ctr" build_k3s_compatible "$packages/k3s-compatible" "$packages/node/10-ptp.conflist"
# On Linux k3d's tools container only has to start: this waits until it is told to end.
offer packages.devenv.test/pause:3.10 image/pause

build_k3s_compatible() {
  local tree=$scratch/tree
  mkdir -p "$tree"/{usr/bin,usr/local/bin,output} "$tree/etc/k3s-compatible/manifests"
  install -m 755 "$packages/k3s-compatible/k3s" "$tree/usr/bin/k3s"
  install -m 755 "$(program_path etcd)" "$tree/usr/local/bin/etcd"
  for name in kube-apiserver kube-controller-manager kube-scheduler kube-proxy; do ln -s kube "$tree/usr/bin/$name"; done
  ln -s bash "$tree/usr/bin/sh" # k3d's entrypoint names signals as bash knows them, and dash doesn't
  cp "$packages"/k3s-compatible/rbac.yaml "$packages/node/10-ptp.conflist" "$tree/etc/k3s-compatible/"
  cp "$packages"/k3s-compatible/manifests/*.yaml "$tree/etc/k3s-compatible/manifests/"
  # k3s's own has these names for the class and its folder.
  storage_manifest | sed -e 's/name: standard$/name: local-path/' -e 's#/var/local-path-provisioner#/var/lib/rancher/k3s/storage#' \
    >"$tree/etc/k3s-compatible/manifests/local-storage.yaml"
  grep -q 'name: local-path$' "$tree/etc/k3s-compatible/manifests/local-storage.yaml"
  "$(program_path ctr)" oci spec | jq 'del(.process.rlimits)' >"$tree/etc/k3s-compatible/cri-base.json"
  : >"$tree/.wh.kind" # nothing of kind's is left but Kubernetes
  : >"$tree/usr/local/bin/.wh.entrypoint"
  {
    layers_of image/node
    pack_layer "$tree"
  } >"$scratch/layers"
  # /var is a volume as kind makes it one: containerd can't put an overlay on an overlay.
  make_image "{
    \"Env\": [\"$path_variable\", \"KUBECONFIG=/etc/rancher/k3s/k3s.yaml\", \"CONTAINERD_ADDRESS=/run/k3s/containerd/containerd.sock\",
      \"CONTAINERD_NAMESPACE=k8s.io\"],
    \"Entrypoint\": [\"/bin/k3s\"], \"Cmd\": [\"agent\"], \"Volumes\": {\"/var\": {}},
    \"Labels\": {\"org.opencontainers.image.title\": \"k3s-compatible node\", \"org.opencontainers.image.version\": \"1.34.4\",
      \"org.opencontainers.image.description\": \"upstream Kubernetes behind the command line of k3s, built from package registries by devenv; not k3s\"}}" "$scratch/layers"
}
