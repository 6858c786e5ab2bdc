# shellcheck shell=bash
# Two bases: a small Debian for images that need a system, and next to nothing for static programs.

part base "" build_base
part static base build_static

build_base() {
  local root=$PWD/root
  debootstrap --variant=minbase --include=ca-certificates "$debian_release" "$root" "$debian_mirror"
  cat >"$root/etc/dpkg/dpkg.cfg.d/slim" <<'CONFIGURATION'
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/lintian/*
path-exclude=/usr/share/bash-completion/*
force-unsafe-io
CONFIGURATION
  printf 'deb %s %s main\n' "$debian_mirror" "$debian_release" "$debian_mirror" "$debian_release-updates" \
    "${debian_mirror%/debian}/debian-security" "$debian_release-security" >"$root/etc/apt/sources.list"
  printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # no service starts in a root
  chmod 755 "$root/usr/sbin/policy-rc.d"
  cp -L /etc/resolv.conf "$root/etc/resolv.conf"
  in_root "$root" apt-get update -q
  in_root "$root" apt-get upgrade -y -q
  strip_root "$root"
  list_of "$root" | wanted_in_layer >"$scratch/list"
  pack_layer "$root" "$scratch/list" >layers
  cp layers blobs
}

# What path-exclude keeps out later was unpacked by debootstrap already.
strip_root() {
  find "$1/usr/share/doc" -type f ! -name copyright -delete
  find "$1/usr/share/doc" -type l -delete
  find "$1/usr/share/doc" -mindepth 1 -type d -empty -delete
  rm -rf "$1"/usr/share/{man,info,locale,lintian,bash-completion}/* "$1"/var/cache/apt/archives/*.deb "$1"/var/log/*
}

# Certificates, a /tmp and the names of two users: all that a static program may look for.
build_static() {
  local result tree=$scratch/tree
  result_of base
  mkdir -p "$tree"/{etc/ssl/certs,tmp}
  chmod 1777 "$tree/tmp"
  cp "$result/root/etc/ssl/certs/ca-certificates.crt" "$tree/etc/ssl/certs/"
  printf 'root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n' >"$tree/etc/passwd"
  printf 'root:x:0:\nnonroot:x:65532:\n' >"$tree/etc/group"
  pack_layer "$tree" >layers
  cp layers blobs
}

layers_of() {
  local result
  result_of "$1"
  cat "$result/layers"
}

# static_image <configuration JSON> <path in the image> <program file>: one program on the static base.
static_image() {
  local tree=$scratch/static-$RANDOM
  install -D -m 755 "$3" "$tree$2"
  { layers_of static && pack_layer "$tree"; } >"$scratch/layers"
  make_image "$1" "$scratch/layers"
}
