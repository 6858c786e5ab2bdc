# shellcheck shell=bash
# Keycloak's server as Maven has it, on Debian's Java. What a build of its own decides (database, health, metrics) is
# decided here, so it starts with `start --optimized`.

keycloak=26.5.6

offer packages.devenv.test/keycloak:$keycloak image/keycloak
part image/keycloak "jre keycloak-dist" build_keycloak
part keycloak-dist "" build_keycloak_dist
needs_tools keycloak-dist unzip=unzip
needs_maven keycloak-dist
part jre newer-base build_jre

build_keycloak_dist() {
  unzip -q "$(fetch_maven org.keycloak keycloak-quarkus-dist $keycloak zip 490189d9dff05272432d51f71a069462eeca97f2920a694d539a1e6c26a5a347)"
}

build_jre() {
  local with_proc=true # Java's certificates are not installed without
  copy_of_base newer-base
  mkdir -p "$scratch/root/usr/share/man/man1" # an alternative's link is made here
  install_packages "$scratch/root" openjdk-21-jre-headless
  pack_changes >layers
  cp layers blobs
  mv "$scratch/root" root
}

build_keycloak() {
  local root=$scratch/root result with_proc=true
  copy_of_base jre
  result_of keycloak-dist
  cp -r "$result/keycloak-$keycloak" "$root/opt/keycloak"
  in_root "$root" useradd -r -u 1000 -g 0 -d /opt/keycloak keycloak
  in_root "$root" /opt/keycloak/bin/kc.sh build --db=postgres --health-enabled=true --metrics-enabled=true
  chown -R 1000:0 "$root/opt/keycloak"
  chmod -R g+rwX "$root/opt/keycloak"
  { layers_of newer-base && layers_of jre && pack_changes; } >"$scratch/layers"
  # The variable makes kc.sh measure the heap by the container's memory limit, as in upstream's image.
  make_image "{\"Env\": [\"$path_variable\", \"LANG=C.UTF-8\", \"KC_RUN_IN_CONTAINER=true\"], \"Entrypoint\": [\"/opt/keycloak/bin/kc.sh\"],
    \"User\": \"1000:0\", \"WorkingDir\": \"/\", \"ExposedPorts\": {\"8080/tcp\": {}, \"9000/tcp\": {}},
    \"Labels\": {\"org.opencontainers.image.title\": \"keycloak\", \"org.opencontainers.image.version\": \"$keycloak\",
      \"org.opencontainers.image.description\": \"Keycloak's own distribution on Debian's Java, built by devenv\"}}" "$scratch/layers"
}
