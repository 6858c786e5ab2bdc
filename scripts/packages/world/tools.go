//go:build tools

// Package tools names the upstream programs that are built from this module, so that `go mod tidy` keeps them.
package tools

import (
	_ "github.com/argoproj/argo-cd/v3/cmd"
	_ "github.com/cloudnative-pg/cloudnative-pg/cmd/manager"
	_ "github.com/containerd/containerd/v2/cmd/containerd"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"
	_ "github.com/containerd/containerd/v2/cmd/ctr"
	_ "github.com/k3d-io/k3d/v5"
	_ "github.com/rancher/local-path-provisioner"
	_ "go.etcd.io/etcd/server/v3/etcdmain"
	_ "helm.sh/helm/v3/cmd/helm"
	_ "sigs.k8s.io/kind"
	_ "sigs.k8s.io/kustomize/kustomize/v5"
)
