# shellcheck shell=bash
# What every script needs: words, root, packages, the toolchain. Sourced from the repository's root.

say() { printf '\033[1m== %s\033[0m\n' "$*"; }
die() { printf '%s: %s\n' "$0" "$*" >&2; exit 1; }

# The folder cargo builds into.
target_dir() { printf '%s\n' "${CARGO_TARGET_DIR:-$PWD/target}"; }

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo --preserve-env=PATH "$@"; fi
}

can_be_root() { [ "$(id -u)" -eq 0 ] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }; }

# Test binaries run as root, cargo as the one who builds.
root_runner() {
  [ "$(id -u)" -eq 0 ] && return 0
  local host; host="$(rustc -vV | sed -n 's/^host: //p')"
  export "CARGO_TARGET_$(tr 'a-z-' 'A-Z_' <<<"$host")_RUNNER=sudo --preserve-env"
}

# need COMMAND=PACKAGE...   installs the Debian packages of the commands that are missing
need() {
  local pair missing=()
  for pair in "$@"; do
    command -v "${pair%%=*}" >/dev/null || PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
  done
  [ ${#missing[@]} -eq 0 ] && return
  command -v apt-get >/dev/null || die "needs ${missing[*]}, and there is no apt-get to install them with"
  say "installing ${missing[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Rust, by rustup where there is none; the version is the one in rust-toolchain.toml.
need_cargo() {
  [ -e "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
  need cc=build-essential
  command -v cargo >/dev/null && return
  need curl=curl
  say "installing Rust (rustup)"
  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --quiet --profile minimal --default-toolchain none
  . "$HOME/.cargo/env"
}

# static_build [CARGO FLAGS]   farspan with nothing to load, in a folder of its own; prints its path
static_build() {
  local host folder
  host="$(rustc -vV | sed -n 's/^host: //p')"
  folder="$(target_dir)/static"
  # With --target the flags are not those of procedural macros, which are libraries that must load.
  RUSTFLAGS="-C target-feature=+crt-static" cargo build -q --bin farspan --target "$host" --target-dir "$folder" "$@" >&2
  case " $* " in *" --release "*) echo "$folder/$host/release/farspan" ;; *) echo "$folder/$host/debug/farspan" ;; esac
}

# cargo_tool PACKAGE [PROGRAM]   a program of crates.io, built once; prints its path
cargo_tool() {
  local tools; tools="$(target_dir)/tools"
  [ -x "$tools/bin/${2:-$1}" ] || CARGO_TARGET_DIR="$tools/build" cargo install -q --locked --root "$tools" "$1" >&2 || return
  printf '%s\n' "$tools/bin/${2:-$1}"
}

# The newest wireguard-go, built once; prints its path. Fails where there is no Go.
wireguard_go() {
  local programs; programs="$(target_dir)/tools/bin"
  if [ ! -x "$programs/wireguard-go" ]; then
    command -v go >/dev/null || return
    GOBIN="$programs" GOFLAGS=-mod=mod go install golang.zx2c4.com/wireguard@latest >&2 || return
    mv "$programs/wireguard" "$programs/wireguard-go"
  fi
  printf '%s\n' "$programs/wireguard-go"
}

# A wireguard that is not ours: wireguard-go where there is Go, else boringtun-cli. Prints its path.
plain_wireguard() { wireguard_go || cargo_tool boringtun-cli; }
