# shellcheck shell=bash
# Go programs. The modules' go.sum pins every source by hash; nothing else decides what is built.

declare -A module_of package_of flags_of tags_of

# program <name> <module folder> <package> [linker flags] [build tags]
program() {
  local name=$1 id=program/$1
  module_of[$name]=$2
  package_of[$name]=$3
  flags_of[$name]="-s -w ${4:-}"
  needs_of[$id]=''
  builder_of[$id]=build_program
  text_of[$id]="$* -trimpath -pgo=off"
  tags_of[$name]=${5:-}
  inputs_of[$id]="$packages/$2/go.mod $packages/$2/go.sum"
  if [[ $3 == ./* ]]; then
    inputs_of[$id]+=" $packages/$2/${3#./}"
  fi
}

require_go() {
  command -v go >/dev/null || fail "Go is not on the PATH" "install Go 1.26 or later (https://go.dev/doc/install)"
}

go_in() {
  local folder=$1
  shift
  (cd "$packages/$folder" && env CGO_ENABLED=0 GOFLAGS=-mod=readonly GOWORK=off go "$@")
}

# `id` is the caller's: the part that is being made.
# shellcheck disable=SC2154
build_program() {
  local name=${id#program/} here=$PWD
  require_go
  go_in "${module_of[$name]}" build -trimpath -pgo=off -tags "${tags_of[$name]}" -ldflags "${flags_of[$name]}" -o "$here/$name" "${package_of[$name]}"
  ln -f "$name" "$scratch/$name" && mv -f "$scratch/$name" "$cache/bin/$name"
}

# The path of a built program.
program_path() {
  local result
  result_of "program/$1"
  echo "$result/$1"
}

# The folder of a module's own files, in the version that go.mod pins.
module_folder() {
  require_go
  go_in "$1" mod download "$2" >&2
  go_in "$1" list -m -f '{{.Dir}}' "$2"
}
