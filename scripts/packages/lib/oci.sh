# shellcheck shell=bash
# OCI images as files: layers, configuration, manifest. No Docker, no daemon.

readonly manifest_type=application/vnd.oci.image.manifest.v1+json
readonly config_type=application/vnd.oci.image.config.v1+json
readonly layer_type=application/vnd.oci.image.layer.v1.tar

# Moves a file into the cache's blobs and prints "sha256:<hex> <size>". Given the hash, it isn't computed again.
keep_blob() {
  local file=$1 hex=${2:-} size
  if [ -z "$hex" ]; then
    hex=$(sha256sum "$file" | cut -d' ' -f1)
  fi
  size=$(stat -c %s "$file")
  chmod 644 "$file"
  mv "$file" "$cache/blobs/sha256/$hex"
  echo "sha256:$hex $size"
}

# Packs a folder as a layer: the same files give the same bytes. With a list of paths, only those.
# Not compressed: it is made, moved and unpacked on one machine, and inflating would cost more than reading.
pack_layer() {
  local folder=$1 list=${2:-} what=(.)
  if [ -n "$list" ]; then
    what=(--no-recursion --files-from "$list")
  fi
  tar -C "$folder" --sort=name --mtime=@0 --numeric-owner --format=gnu -cf - "${what[@]}" |
    tee "$scratch/layer" | sha256sum | cut -d' ' -f1 >"$scratch/layer.hex"
  keep_blob "$scratch/layer" "$(<"$scratch/layer.hex")"
}

architecture() {
  case $(uname -m) in
    x86_64) echo amd64 ;;
    aarch64) echo arm64 ;;
    *) fail "no recipe for this processor: $(uname -m)" ;;
  esac
}

# Prints the layers as a JSON array of descriptors, from lines "sha256:<hex> <size>".
layer_descriptors() {
  jq -R -n --arg type "$layer_type" '[inputs | split(" ") | {mediaType: $type, digest: .[0], size: (.[1] | tonumber)}]'
}

# make_image <configuration JSON> <file of layers, lowest first>
# Leaves in the current folder: `answer` (digest, size and type as JSON), `layers`, and `blobs`, all that the image is.
make_image() {
  local configuration=$1 layers=$2 descriptors config manifest
  cp "$layers" layers
  descriptors=$(layer_descriptors <layers)
  jq -n -c -S --arg architecture "$(architecture)" --argjson config "$configuration" --argjson layers "$descriptors" '
    {architecture: $architecture, os: "linux", created: "1970-01-01T00:00:00Z", $config,
     rootfs: {type: "layers", diff_ids: [$layers[].digest]},
     history: [$layers[] | {created: "1970-01-01T00:00:00Z", created_by: "devenv scripts/packages"}]}' >"$scratch/config"
  config=$(keep_blob "$scratch/config")
  jq -n -c -S --arg type "$manifest_type" --arg config_type "$config_type" --arg config "$config" --argjson layers "$descriptors" '
    ($config | split(" ")) as $c
    | {schemaVersion: 2, mediaType: $type,
       config: {mediaType: $config_type, digest: $c[0], size: ($c[1] | tonumber)}, $layers}' >"$scratch/manifest"
  manifest=$(keep_blob "$scratch/manifest")
  { printf '%s\n' "$manifest" "$config" && cat layers; } | awk '!seen[$0]++' >blobs
  write_answer "$manifest" "$manifest_type"
}

# make_file <path>: a plain file as an answer.
make_file() {
  local copy=$scratch/file blob
  cp "$1" "$copy"
  blob=$(keep_blob "$copy")
  echo "$blob" >blobs
  write_answer "$blob" application/octet-stream
}

write_answer() {
  local digest size
  read -r digest size <<<"$1"
  printf '"digest": "%s", "size": %s, "mediaType": "%s"\n' "$digest" "$size" "$2" >answer
}

# Writes an OCI layout as a tar to stdout. Arguments: pairs of <image name> <folder of a made image>.
layout_archive() {
  local tree=$scratch/layout digest size entries=()
  rm -rf "$tree"
  mkdir -p "$tree/blobs/sha256"
  while [ $# -gt 0 ]; do
    while read -r digest _; do
      ln -f "$cache/blobs/sha256/${digest#sha256:}" "$tree/blobs/sha256/"
    done <"$2/blobs"
    read -r digest size <"$2/blobs"
    entries+=("$(jq -n -c --arg type "$manifest_type" --arg digest "$digest" --argjson size "$size" --arg name "$1" \
      '{mediaType: $type, $digest, $size, annotations: {"io.containerd.image.name": $name}}')")
    shift 2
  done
  echo '{"imageLayoutVersion":"1.0.0"}' >"$tree/oci-layout"
  printf '%s\n' "${entries[@]}" | jq -c -s '{schemaVersion: 2, manifests: .}' >"$tree/index.json"
  tar -C "$tree" -cf - oci-layout index.json blobs
}

# Puts a part's blobs into the store. A link where both lie on one disk: then a blob takes its space once, and what a disk
# damages in one place is damaged in both. So each is hashed on its way; one that is not what it was is thrown away, and
# 1 says that its part has to be built anew.
deliver() {
  local result=$1 digest hex temporary
  while read -r digest _; do
    hex=${digest#sha256:}
    if [ -e "$store/blobs/sha256/$hex" ]; then
      continue
    fi
    temporary=$store/blobs/.packages-$$-$hex
    ln -f "$cache/blobs/sha256/$hex" "$temporary" 2>/dev/null || cp "$cache/blobs/sha256/$hex" "$temporary"
    if [ "$(sha256sum <"$temporary")" != "$hex  -" ]; then
      rm -f "$temporary" "$cache/blobs/sha256/$hex"
      say "the cached blob $hex is damaged: it is built anew"
      return 1
    fi
    mv -f "$temporary" "$store/blobs/sha256/$hex"
  done <"$result/blobs"
}

is_delivered() {
  local digest
  while read -r digest _; do
    [ -e "$store/blobs/sha256/${digest#sha256:}" ] || return 1
  done <"$1/blobs"
}
