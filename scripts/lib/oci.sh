# shellcheck shell=bash
# Container images without an engine: an OCI layout in a tar, the same bytes for the same content. Sourced after common.sh.

# tar_of FOLDER   its content, by root, from no time, in one order
tar_of() { tar --create --format=gnu --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=u+rw,go-w,a+rX --directory="$1" .; }

# blob LAYOUT   stores what it reads; prints its descriptor's size and digest
blob() {
  local file digest
  file="$(mktemp "$1/blob-XXXXXX")"
  cat >"$file"
  digest="$(sha256sum <"$file")"
  digest="${digest%% *}"
  mv "$file" "$1/blobs/sha256/$digest"
  chmod 644 "$1/blobs/sha256/$digest"
  printf '"digest":"sha256:%s","size":%s' "$digest" "$(stat -c %s "$1/blobs/sha256/$digest")"
}

# oci_image ROOT TAG OUT CONFIG   one layer; CONFIG is the JSON of the image's "config". Read by ctr, docker, podman and skopeo.
oci_image() {
  local root="$1" tag="$2" out="$3" config="$4" layout type=application/vnd.oci.image architecture layer digest settings manifest
  layout="$(mktemp -d "${TMPDIR:-/tmp}/farspan-image-XXXXXX")"
  mkdir -p "$layout/blobs/sha256"
  case "$(uname -m)" in x86_64) architecture=amd64 ;; aarch64) architecture=arm64 ;; *) architecture="$(uname -m)" ;; esac
  layer="$(tar_of "$root" | blob "$layout")"
  digest="$(cut -d'"' -f4 <<<"$layer")"
  settings="$(printf '{"created":"1970-01-01T00:00:00Z","architecture":"%s","os":"linux","config":%s,"rootfs":{"type":"layers","diff_ids":["%s"]}}' \
    "$architecture" "$config" "$digest" | blob "$layout")"
  manifest="$(printf '{"schemaVersion":2,"mediaType":"%s.manifest.v1+json","config":{"mediaType":"%s.config.v1+json",%s},"layers":[{"mediaType":"%s.layer.v1.tar",%s}]}' \
    "$type" "$type" "$settings" "$type" "$layer" | blob "$layout")"
  printf '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
  printf '{"schemaVersion":2,"mediaType":"%s.index.v1+json","manifests":[{"mediaType":"%s.manifest.v1+json",%s,"annotations":{"io.containerd.image.name":"%s","org.opencontainers.image.ref.name":"%s"}}]}' \
    "$type" "$type" "$manifest" "$tag" "${tag##*:}" >"$layout/index.json"
  # What docker read before it knew OCI layouts.
  printf '[{"Config":"blobs/sha256/%s","RepoTags":["%s"],"Layers":["blobs/sha256/%s"]}]' \
    "$(cut -d'"' -f4 <<<"$settings" | cut -d: -f2)" "$tag" "${digest#sha256:}" >"$layout/manifest.json"
  tar_of "$layout" >"$out"
  rm -rf "$layout"
}

# libraries PROGRAM ROOT   copies what it loads; nothing for a static one
libraries() {
  { LC_ALL=C ldd "$1" 2>/dev/null || true; } | { grep -o '/[^ ]*' || true; } | while read -r library; do
    mkdir -p "$2${library%/*}"
    cp -nL "$library" "$2$library"
  done
}

# program_root FOLDER PROGRAM...   a root folder with these programs of this machine
program_root() {
  local root="$1" program; shift
  mkdir -p "$root"/{bin,etc,proc,sys,dev,tmp}
  for program in "$@"; do
    program="$(PATH="$PATH:/usr/sbin:/sbin" command -v "$program")" || die "no $program on this machine"
    cp -L "$program" "$root/bin/"
    libraries "$program" "$root"
  done
}
