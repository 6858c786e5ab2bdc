# shellcheck shell=bash
# Parts: what is built, out of what, and whether that is there already.
#
# A part's result is a folder, $cache/parts/<part>/<key>. The key is a hash of everything the result is made from, so a
# result is never checked for age and never overwritten. It is made under $cache/tmp and renamed into place at the end:
# a killed run leaves nothing that looks finished.

declare -A needs_of builder_of inputs_of text_of tools_of key_of part_of

# part <id> "<needs>" <builder function> [input files and folders…]: a part made by the recipe file that calls this.
part() {
  local id=$1
  needs_of[$id]=$2
  builder_of[$id]=$3
  shift 3
  inputs_of[$id]="${BASH_SOURCE[1]} $*"
  text_of[$id]=
}

# needs_tools <part> <command>=<Debian package>…: programs that building it takes, besides those that all parts take.
needs_tools() {
  local id=$1
  shift
  tools_of[$id]+=" $*"
}

# offer <name> <part>: the name by which others ask for a part.
offer() { part_of[$1]=$2; }

# Sets key_of[<id>], and those of all it needs.
compute_key() {
  local id=$1 need material
  if [ -n "${key_of[$id]:-}" ]; then
    return
  fi
  material="$id ${text_of[$id]} $(uname -m)"
  for need in ${needs_of[$id]}; do
    compute_key "$need"
    material+=" ${key_of[$need]}"
  done
  local input
  key_of[$id]=$({
    printf '%s\n' "$material"
    for input in ${inputs_of[$id]}; do
      if [ -d "$input" ]; then
        find "$input" -type f -print0 | LC_ALL=C sort -z | xargs -0 cat
      else
        cat "$input"
      fi
    done
  } | sha256sum | cut -c1-24)
}

result_of() {
  compute_key "$1"
  result=$cache/parts/$1/${key_of[$1]}
}

# A part is there when its folder is, and every blob that it put into the cache.
is_built() {
  local digest size result
  result_of "$1"
  [ -d "$result" ] || return 1
  if [ -e "$result/blobs" ]; then
    while read -r digest size; do
      [ -e "$cache/blobs/sha256/${digest#sha256:}" ] || return 1
    done <"$result/blobs"
  fi
}

# Appends to the array `missing`, in the order of building, what <id> still takes.
collect_missing() {
  local id=$1 need
  if [[ " ${missing[*]} " == *" $id "* ]] || is_built "$id"; then
    return
  fi
  for need in ${needs_of[$id]}; do
    collect_missing "$need"
  done
  missing+=("$id")
}

seconds_file() { echo "$cache/seconds/${1//\//-}"; }

last_time() {
  local file
  file=$(seconds_file "$1")
  if [ -e "$file" ]; then
    echo "$(<"$file") s last time"
  else
    echo "first time"
  fi
}

notice() {
  local id text=
  if [ "${#missing[@]}" -eq 0 ]; then
    return
  fi
  for id in "${missing[@]}"; do
    text+="${text:+, }$id ($(last_time "$id"))"
  done
  say "to be built from package registries: $text"
}

# Runs one part's builder in the folder that becomes the result. Its output goes to a log.
make_part() {
  local id=$1 started=$SECONDS work result
  work=$(mktemp -d "$cache/tmp/${id//\//-}.XXXXXX")
  mkdir "$work/result" "$work/scratch"
  scratch=$work/scratch
  cd "$work/result" || exit
  "${builder_of[$id]}"
  cd /
  result_of "$id"
  mkdir -p "$(dirname "$result")"
  rm -rf "$result" # only there if one of its blobs is lost
  mv "$work/result" "$result"
  rm -rf "$work"
  echo $((SECONDS - started)) >"$(seconds_file "$id")"
}

declare -A job_of

start_part() {
  local id=$1
  say "building $id ($(last_time "$id"))"
  # A process group of its own, so that stopping it stops all its children.
  set -m
  (
    make_part "$id"
  ) >"$cache/logs/${id//\//-}.log" 2>&1 </dev/null &
  job_of[$id]=$!
  set +m
}

finish_part() {
  local id=$1 log=$cache/logs/${1//\//-}.log job=${job_of[$1]}
  if ! wait "$job"; then
    unset "job_of[$id]"
    stop_jobs
    say "error: building $id failed; the last lines of $log:"
    tail -20 "$log" | sed 's/^/  /' >&3
    exit 1
  fi
  unset "job_of[$id]"
  say "built $id in $(<"$(seconds_file "$id")") s"
}

stop_jobs() {
  local job
  for job in "${job_of[@]}"; do
    kill -TERM -- "-$job" 2>/dev/null || true
  done
  job_of=()
}

# The bases wait for the network and the disk, the programs for the processors: they are made beside them.
build_missing() {
  local id bases=() programs=() others=()
  for id in "${missing[@]}"; do
    case $id in
      base | newer-base)
        start_part "$id" # not as a condition of something: its errors would not end it then
        bases+=("$id")
        ;;
      program/*) programs+=("$id") ;;
      *) others+=("$id") ;;
    esac
  done
  for id in "${programs[@]}"; do build_part "$id"; done
  for id in "${bases[@]}"; do finish_part "$id"; done
  for id in "${others[@]}"; do build_part "$id"; done
}

build_part() {
  start_part "$1"
  finish_part "$1"
}

# One run builds at a time. The lock is the kernel's: it ends with the process that held it.
lock() {
  exec 9>"$cache/lock"
  if ! flock -n 9; then
    say "another run builds packages: waiting until it is done"
    flock 9
  fi
}

# debootstrap mounts /proc and /sys in its root while it works: a killed one leaves them, and they are not ours to empty.
remove_leftovers() {
  local mount
  awk -v folder="$cache/tmp/" 'index($2, folder) == 1 {print $2}' /proc/self/mounts | sort -r |
    while read -r mount; do umount -l "$mount"; done
  rm -rf --one-file-system "${cache:?}"/tmp/*
  if [ -n "$store" ]; then
    find "$store/blobs" -maxdepth 1 -name '.packages-*' -mmin +10 -delete
  fi
}

# Only under the lock: nobody else's work is in these places then.
sweep() {
  remove_leftovers
  local folder old
  for folder in "$cache"/parts/*/ "$cache"/parts/*/*/; do
    # Three keys of each part are kept, so that two branches side by side don't rebuild each other's.
    [ -d "$folder" ] || continue
    find "$folder" -mindepth 1 -maxdepth 1 -type d -regextype posix-extended -regex '.*/[0-9a-f]{24}' -printf '%T@ %p\n' | sort -rn | tail -n +4 |
      while read -r _ old; do rm -rf "$old"; done
  done
  find "$cache/blobs/sha256" -type f -printf '%f\n' | sort >"$cache/tmp/have"
  find "$cache/parts" -mindepth 2 -maxdepth 4 -name blobs -type f -exec cat {} + | cut -d' ' -f1 | sed 's/^sha256://' | sort -u >"$cache/tmp/used"
  comm -23 "$cache/tmp/have" "$cache/tmp/used" | while read -r old; do rm -f "$cache/blobs/sha256/$old"; done
}
