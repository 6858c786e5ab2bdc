# shellcheck shell=bash
# PostgreSQL 18 as Debian has it, laid out as CloudNativePG wants it: user 26, the programs on the PATH. The minor version
# is Debian's of the day (it keeps no older one), so the name gives the major one, and the label says all.

offer packages.devenv.test/postgresql:18 image/postgresql
part image/postgresql newer-base build_postgresql

build_postgresql() {
  local root=$scratch/root version unused=() with_proc=true # which its packages' scripts look for
  copy_of_base newer-base
  mkdir "$root/etc/postgresql-common"
  echo 'create_main_cluster = false' >"$root/etc/postgresql-common/createcluster.conf"
  # The two of systemd that are named keep systemd itself out.
  install_packages "$root" postgresql-18 systemd-standalone-tmpfiles systemd-standalone-sysusers
  # Debian's commands around PostgreSQL, what they are written in, and a private key made just now: here the operator does
  # what they do, with keys of its own.
  mapfile -t unused < <(in_root "$root" sh -c "dpkg-query -W -f '\${Package}\n' locales libc-l10n ssl-cert perl 'perl-modules-*' 'libperl5*' 'lib*-perl'")
  in_root "$root" dpkg --purge --force-depends "${unused[@]}"
  rm -f "$root"/etc/ssl/{certs/ssl-cert-snakeoil.pem,private/ssl-cert-snakeoil.key}
  # shellcheck disable=SC2016
  version=$(in_root "$root" dpkg-query -W -f '${Version}' postgresql-18)
  in_root "$root" groupdel tape # has 26
  in_root "$root" groupmod -g 26 postgres
  in_root "$root" usermod -u 26 postgres
  chown -R 26:26 "$root"/var/{lib,log}/postgresql "$root/run/postgresql"
  { layers_of newer-base && pack_changes; } >"$scratch/layers"
  make_image "{\"Env\": [\"PATH=/usr/lib/postgresql/18/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\", \"LANG=C.UTF-8\"],
    \"User\": \"26:26\", \"WorkingDir\": \"/\",
    \"Labels\": {\"org.opencontainers.image.title\": \"postgresql\", \"org.opencontainers.image.version\": \"$version\",
      \"org.opencontainers.image.description\": \"Debian's PostgreSQL, built by devenv\"}}" "$scratch/layers"
}
