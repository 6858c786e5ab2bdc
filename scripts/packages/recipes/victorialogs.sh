# shellcheck shell=bash
# VictoriaLogs and its agent, which reads the pods' logs: Apache-2.0, and each one static program.

victorialogs_flags() { echo "-X github.com/VictoriaMetrics/VictoriaMetrics/lib/buildinfo.Version=$1-v1.52.1"; }

program victoria-logs victorialogs github.com/VictoriaMetrics/VictoriaLogs/app/victoria-logs "$(victorialogs_flags victoria-logs)"
program vlagent victorialogs github.com/VictoriaMetrics/VictoriaLogs/app/vlagent "$(victorialogs_flags vlagent)"

offer packages.devenv.test/victoria-logs:1.52.1 image/victoria-logs
part image/victoria-logs "static program/victoria-logs" build_victoria_logs
offer packages.devenv.test/vlagent:1.52.1 image/vlagent
part image/vlagent "static program/vlagent" build_vlagent

build_victoria_logs() { victorialogs_image victoria-logs; }
build_vlagent() { victorialogs_image vlagent; }

victorialogs_image() {
  static_image "{\"Entrypoint\": [\"/$1\"], \"WorkingDir\": \"/\",
    \"Labels\": {\"org.opencontainers.image.title\": \"$1\", \"org.opencontainers.image.version\": \"1.52.1\",
      \"org.opencontainers.image.description\": \"built from package registries by devenv\"}}" "/$1" "$(program_path "$1")"
}
