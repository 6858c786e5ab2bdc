//go:build tools

// Package tools names the upstream programs that are built from this module, so that `go mod tidy` keeps them.
package tools

import (
	_ "github.com/VictoriaMetrics/VictoriaLogs/app/victoria-logs"
	_ "github.com/VictoriaMetrics/VictoriaLogs/app/vlagent"
)
