# shellcheck shell=bash
# Redis as Debian has it. Argo CD gives options only (`--save …`), so the entrypoint is the server itself.

offer packages.devenv.test/redis:7.0 image/redis
part image/redis base build_redis

build_redis() {
  local root=$scratch/root
  copy_of_base
  install_packages "$root" redis-server
  in_root "$root" groupmod -o -g 999 redis
  in_root "$root" usermod -o -u 999 -d /data redis
  chown -R 999:999 "$root"/{etc,var/lib}/redis
  install -d -o 999 -g 999 "$root/data"
  { layers_of base && pack_changes; } >"$scratch/layers"
  make_image '{
    "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
    "Entrypoint": ["/usr/bin/redis-server"], "User": "999", "WorkingDir": "/data", "ExposedPorts": {"6379/tcp": {}},
    "Labels": {"org.opencontainers.image.title": "redis", "org.opencontainers.image.version": "7.0",
      "org.opencontainers.image.description": "Debian'"'"'s Redis, built by devenv"}}' "$scratch/layers"
}
