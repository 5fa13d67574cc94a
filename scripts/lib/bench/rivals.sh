# shellcheck shell=bash
# Programs to compare with. Sourced after common.sh and kube.sh.

# shellcheck disable=SC2034  # read by scripts/bench
RIVALS=(wireguard-go gotatun boringtun-cli vxlan)

# rival NAME   builds it once; prints its path
rival() {
  case "$1" in
    wireguard-go) need_go >&2 && wireguard_go ;;
    vxlan) echo kernel ;;
    gotatun) cargo_tool gotatun-cli gotatun ;;
    *) cargo_tool "$1" ;;
  esac
}

# version_of PROGRAM   one word; nothing where the kernel has none
version_of() {
  case "$1" in
    kernel) if modprobe -q vxlan 2>/dev/null || [ -e /sys/module/vxlan ]; then echo "Linux $(uname -r)"; fi ;;
    */wireguard-go) PATH="$PATH:/usr/local/go/bin" go version -m "$1" | awk '$1 == "mod" { print $3 }' ;;
    *) "$1" --version | awk '{ print $2; exit }' ;;
  esac
}
