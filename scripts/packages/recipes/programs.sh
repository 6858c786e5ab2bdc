# shellcheck shell=bash
# The Go programs. All but a few come from one module (world/), where they share the same Kubernetes libraries: what
# takes three quarters of an hour one by one takes minutes together.

kubernetes=1.34.4
kubernetes_version_flags() {
  local package flags=
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    flags+=" -X $package.gitVersion=v$kubernetes -X $package.gitMajor=1 -X $package.gitMinor=34"
    flags+=" -X $package.gitTreeState=clean -X $package.gitCommit=unknown"
  done
  echo "$flags"
}

argocd_version_flags() {
  local package=github.com/argoproj/argo-cd/v3/common
  echo "-X $package.version=3.2.11 -X $package.gitTag=v3.2.11 -X $package.gitTreeState=clean -X $package.gitCommit=unknown -X $package.kubectlVersion=v0.34.4"
}

# The version also names the images of its helpers.
k3d_version_flags() {
  local package=github.com/k3d-io/k3d/v5/version
  echo "-X $package.Version=v5.8.3 -X $package.K3sVersion=v1.31.5-k3s1"
}

containerd_flags="-X github.com/containerd/containerd/v2/version.Version=v2.2.9"
containerd_tags="no_btrfs no_zfs no_devmapper"

program kube world ./kube "$(kubernetes_version_flags)"
program etcd world go.etcd.io/etcd/server/v3
program coredns world ./coredns
program containerd world github.com/containerd/containerd/v2/cmd/containerd "$containerd_flags" "$containerd_tags"
program ctr world github.com/containerd/containerd/v2/cmd/ctr "$containerd_flags" "$containerd_tags"
program containerd-shim-runc-v2 world github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2 "$containerd_flags" "$containerd_tags"
program local-path-provisioner world github.com/rancher/local-path-provisioner
program kind world sigs.k8s.io/kind
program k3d world github.com/k3d-io/k3d/v5 "$(k3d_version_flags)"
program argocd world github.com/argoproj/argo-cd/v3/cmd "$(argocd_version_flags)"
program helm world helm.sh/helm/v3/cmd/helm "-X helm.sh/helm/v3/internal/version.version=v3.19.5 -X helm.sh/helm/v3/internal/version.gitTreeState=clean"
program kustomize world sigs.k8s.io/kustomize/kustomize/v5 "-X sigs.k8s.io/kustomize/api/provenance.version=v5.7.1"
