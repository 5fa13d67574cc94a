# shellcheck shell=bash
# The parts of scripts/test. Sourced after steps.sh and kube.sh.

# Real agents and their clusters wait most of the time: so many tests of them run at once.
at_once=$(($(nproc) * 2))

lint() {
  need shellcheck=shellcheck
  step "rustfmt" cargo fmt --all --check
  step "clippy" cargo clippy -q --workspace --all-targets -- -D warnings
  step "clippy of what needs root" cargo clippy -q --workspace --test netns --test kernel --test kube --test reach -- -D warnings
  RUSTDOCFLAGS="-D warnings" step "rustdoc" cargo doc -q --workspace --no-deps --document-private-items
  step "shellcheck" find .ci scripts -type f ! -name "*.py" ! -name "*.yaml" -exec shellcheck -x {} +
}

unit() {
  step "unit, sim, fuzz, CLI, tidy" cargo test -q --workspace --no-fail-fast
  [ "${CI:-}" != true ] || FARSPAN_SIM_FIRST=64 FARSPAN_SIM_SEEDS=436 beside "436 more worlds" cargo test -q --workspace --test sim property
}

root() {
  privileged root || return 0
  need nft=nftables ip=iproute2 ping=iputils-ping iperf3=iperf3 iptables-legacy=iptables setpriv=util-linux wg=wireguard-tools
  step "host-network as root" cargo test -q --workspace --test host --no-fail-fast
  FARSPAN_PLAIN_WIREGUARDS="$(wireguard_go || true):$(cargo_tool boringtun-cli || true)"; export FARSPAN_PLAIN_WIREGUARDS
  step "data-plane as root" cargo test -q --workspace --test engine_netns --test fairness_netns --test fallbacks_netns --test lent_netns --test rivals_netns --no-fail-fast
}

netns() {
  privileged netns || return 0
  need nft=nftables ip=iproute2 ping=iputils-ping conntrack=conntrack faketime=faketime wg=wireguard-tools iperf3=iperf3 tcpdump=tcpdump script=bsdutils miniupnpd=miniupnpd-nftables turnserver=coturn openssl=openssl
  FARSPAN_PLAIN_WIREGUARD="$(plain_wireguard)"; export FARSPAN_PLAIN_WIREGUARD
  step "agents behind NATs" cargo test -q --workspace --test netns --no-fail-fast -- --test-threads "$at_once"
  as_root scripts/clean
}

kernel() {
  privileged kernel || return 0
  local binary; binary="$(cargo test -q --workspace --test kernel --no-run --message-format=json | grep '"name":"kernel"' | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1)"
  step "the kernel's WireGuard" as_root scripts/vm "$binary" --test-threads=1
}

# kubernetes   has its programs, or says that they are not there
kubernetes() {
  finish "the build of Kubernetes" || return
  FARSPAN_KUBE_TOOLS="$(kube_tools)" || { failed+=("the build of Kubernetes"); return 1; }
  export FARSPAN_KUBE_TOOLS
}

kube() {
  privileged kube || return 0
  need ip=iproute2 nft=nftables openssl=openssl conntrack=conntrack promtool=prometheus
  step "alert rules" promtool test rules manifests/prometheus/alerts_test.yaml
  kubernetes || return 0
  step "agents and a real Kubernetes" cargo test -q --workspace --test kube --no-fail-fast -- --test-threads "$at_once"
  as_root scripts/clean
}

nodes() {
  privileged nodes || return 0
  as_root scripts/lib/kubernetes/possible || { skip nodes "control groups or namespaces cannot be made here"; return 0; }
  kubernetes || return 0
  cargo build -q --workspace --bin farspan
  step "real nodes, three sites, two NATs" scripts/demo-kubernetes --program "$(target_dir)/debug/farspan"
}
