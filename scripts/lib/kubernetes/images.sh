# shellcheck shell=bash
# What the pods are made of, from programs of this machine: no registry is asked. Sourced after oci.sh.

: "${files:?}" "${tools:?}" "${farspan_image:?}"

# small_image NAME CONFIG ROOT
small_image() { oci_image "$3" "local.test/$1:1" "$files/images/$1.tar" "$2"; }

# images PROGRAM   pause, DNS, a box of tools, and farspan from its own recipe
images() {
  local root="$files/roots"
  mkdir -p "$files/images"
  mkdir -p "$root"/{pause,dns}
  cp "$(command -v busybox)" "$root/pause/busybox"
  small_image pause '{"Entrypoint":["/busybox","sleep","1000000000"]}' "$root/pause"
  cp "$tools/coredns" "$root/dns/coredns"
  small_image dns '{"Entrypoint":["/coredns"]}' "$root/dns"
  program_root "$root/tools" dash socat cat sleep ping ip getent hostname seq timeout
  mv "$root/tools/bin/dash" "$root/tools/bin/sh"
  small_image tools '{"Env":["PATH=/bin"],"Cmd":["sh"]}' "$root/tools"
  scripts/image --program "$1" --out "$files/images/farspan.tar" "$farspan_image"
}
