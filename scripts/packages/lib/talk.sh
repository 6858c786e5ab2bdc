# shellcheck shell=bash
# Talk goes to stderr, one line per event: stdout belongs to the answer.

# Kept apart from stderr, because a part's own output goes to its log.
exec 3>&2

say() { printf '%s\n' "$*" >&3; }

fail() {
  say "error: $1"
  shift
  if [ $# -gt 0 ]; then
    printf '  %s\n' "$@" >&3
  fi
  exit 1
}

usage_error() {
  say "error: $1"
  shift
  if [ $# -gt 0 ]; then
    printf '  %s\n' "$@" >&3
  fi
  exit 2
}
