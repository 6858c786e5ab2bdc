//go:build tools

// Package tools names the upstream programs that are built from this module, so that `go mod tidy` keeps them.
package tools

import (
	_ "istio.io/istio/manifests"
	_ "istio.io/istio/pilot/cmd/pilot-agent"
	_ "istio.io/istio/pilot/cmd/pilot-discovery"
)
