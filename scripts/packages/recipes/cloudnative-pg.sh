# shellcheck shell=bash
# The operator of CloudNativePG. It copies itself into the pods it makes, and looks for /operator/manager_<architecture>.

cnpg=1.27.4

program cnpg-manager world github.com/cloudnative-pg/cloudnative-pg/cmd/manager

offer packages.devenv.test/cloudnative-pg:$cnpg image/cloudnative-pg
part image/cloudnative-pg "static program/cnpg-manager" build_cloudnative_pg

offer https://raw.githubusercontent.com/cloudnative-pg/cloudnative-pg/release-1.27/releases/cnpg-$cnpg.yaml file/cnpg-manifest
part file/cnpg-manifest "" build_cnpg_manifest "$packages/world/go.sum"

build_cloudnative_pg() {
  local tree=$scratch/tree name
  name=manager_$(architecture)
  install -D -m 755 "$(program_path cnpg-manager)" "$tree/operator/$name"
  ln -s "operator/$name" "$tree/manager"
  { layers_of static && pack_layer "$tree"; } >"$scratch/layers"
  make_image "{\"Entrypoint\": [\"/manager\"], \"User\": \"65532:65532\", \"WorkingDir\": \"/\",
    \"Labels\": {\"org.opencontainers.image.title\": \"cloudnative-pg\", \"org.opencontainers.image.version\": \"$cnpg\",
      \"org.opencontainers.image.description\": \"built from package registries by devenv\"}}" "$scratch/layers"
}

# The module holds the very file that the address names.
build_cnpg_manifest() {
  make_file "$(module_folder world github.com/cloudnative-pg/cloudnative-pg)/releases/cnpg-$cnpg.yaml"
}
