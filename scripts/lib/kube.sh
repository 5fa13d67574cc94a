# shellcheck shell=bash
# Kubernetes for the tests, from its Go modules (tests/kube/tools). Sourced from the repository's root, after common.sh.

KUBE_VERSION=v1.34.4

# Any Go since 1.21 fetches the one that go.mod asks for.
need_go() {
  local minor release list=/etc/apt/sources.list.d/backports.list
  export PATH="$PATH:/usr/local/go/bin" GOTOOLCHAIN=auto
  minor="$(go env GOVERSION 2>/dev/null | sed -n 's/^go1\.\([0-9]*\).*/\1/p')"
  [ "${minor:-0}" -lt 21 ] || return 0
  command -v apt-get >/dev/null || die "needs Go 1.21 or newer to build Kubernetes, and there is no apt-get to install it with"
  release="$(. /etc/os-release && echo "${VERSION_CODENAME:-}")"
  say "installing Go"
  if [ "$(. /etc/os-release && echo "$ID")" = debian ]; then
    grep -rqs "$release-backports" /etc/apt/sources.list /etc/apt/sources.list.d ||
      as_root tee "$list" >/dev/null <<<"deb http://deb.debian.org/debian $release-backports main"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -t "$release-backports" golang-go >/dev/null
  else
    need go=golang-go
  fi
  command -v go >/dev/null || die "needs Go 1.21 or newer to build Kubernetes, and $release has none: install it from its makers' site"
}

# kube_tools   builds kube-apiserver (with etcd), -controller-manager, -scheduler, -proxy, kubelet, kubectl, coredns and helm,
# once: 20 minutes of a processor and 4.5 GB in Go's caches; seconds where these are warm. Prints their folder.
kube_tools() {
  local folder stamp version name
  folder="$(target_dir)/tools/kube"
  stamp="$(cd tests/kube/tools && cat go.mod go.sum ./*/main.go ../../../scripts/lib/kube.sh | sha256sum)"
  if [ "$(cat "$folder/stamp" 2>/dev/null)" != "$stamp" ]; then
    need_go >&2 || return
    say "building Kubernetes $KUBE_VERSION: ten minutes, once" >&2
    mkdir -p "$folder" || return
    version="k8s.io/component-base/version"
    (
      cd tests/kube/tools &&
        CGO_ENABLED=0 GOFLAGS="-trimpath -buildvcs=false" nice go build -o "$folder/" -ldflags "-s -w
        -X $version.gitVersion=$KUBE_VERSION -X $version.gitMajor=1 -X $version.gitMinor=34 -X $version.gitTreeState=clean
        -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=34" \
        ./kubernetes ./coredns helm.sh/helm/v3/cmd/helm >&2
    ) || return
    for name in kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl; do ln -sf kubernetes "$folder/$name"; done
    printf '%s\n' "$stamp" >"$folder/stamp"
  fi
  printf '%s\n' "$folder"
}
