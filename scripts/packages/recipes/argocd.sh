# shellcheck shell=bash
# Argo CD: one program under all its components' names, and the tools it calls. Laid out as upstream's image is.
# The Go module does not carry the built web interface: the page is a stub, the API is whole.

offer packages.devenv.test/argocd:3.2.11 image/argocd
part image/argocd "base program/argocd program/helm program/kustomize" build_argocd

offer https://raw.githubusercontent.com/argoproj/argo-cd/v3.2.11/manifests/install.yaml file/argocd-install
part file/argocd-install "" build_argocd_install "$packages/world/go.sum"

build_argocd() {
  local root=$scratch/root module name
  module=$(module_folder world github.com/argoproj/argo-cd/v3)
  copy_of_base
  install_packages "$root" git tini gpg gpg-agent openssh-client connect-proxy
  # git needs Perl for commands that Argo CD does not use, and it is as large as all the rest together.
  in_root "$root" dpkg --purge --force-depends perl libperl5.36 perl-modules-5.36 liberror-perl
  in_root "$root" groupadd -o -g 999 argocd
  in_root "$root" useradd -o -r -u 999 -g argocd -d /home/argocd argocd
  install -d -o 999 -g 0 -m 775 "$root/home/argocd"
  # In a module's folder files have lost their run bits.
  install -m 755 "$module/entrypoint.sh" "$module"/hack/{gpg-wrapper,git-verify-wrapper}.sh "$root/usr/local/bin/"
  ln -s entrypoint.sh "$root/usr/local/bin/uid_entrypoint.sh"
  for name in argocd helm kustomize; do
    install -m 755 "$(program_path $name)" "$root/usr/local/bin/"
  done
  for name in server repo-server cmp-server application-controller dex notifications applicationset-controller k8s-auth commit-server; do
    ln -s argocd "$root/usr/local/bin/argocd-$name"
  done
  mkdir -p "$root"/app/config/{ssh,tls,gpg/source}
  install -d -o 999 -m 700 "$root/app/config/gpg/keys"
  touch "$root/app/config/ssh/ssh_known_hosts"
  mkdir -p "$root/etc/ssh"
  ln -sf /app/config/ssh/ssh_known_hosts "$root/etc/ssh/ssh_known_hosts"
  { layers_of base && pack_changes; } >"$scratch/layers"
  make_image '{
    "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "USER=argocd", "HOME=/home/argocd"],
    "Entrypoint": ["/usr/bin/tini", "--"], "User": "999", "WorkingDir": "/home/argocd",
    "Labels": {"org.opencontainers.image.title": "argocd", "org.opencontainers.image.version": "3.2.11",
      "org.opencontainers.image.description": "built from package registries by devenv, without the web interface"}}' "$scratch/layers"
}

# The module holds the very file that the address names.
build_argocd_install() {
  make_file "$(module_folder world github.com/argoproj/argo-cd/v3)/manifests/install.yaml"
}
