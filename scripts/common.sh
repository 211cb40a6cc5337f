# shellcheck shell=bash
# Sourced by the other scripts: where builds go, and with what. Every build of this project has to use the same
# values, for RocksDB is compiled again wherever one of them differs.

# shellcheck disable=SC2034  # for those who source this
culver_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
culver_cache=${XDG_CACHE_HOME:-$HOME/.cache}/culver

# Fresh clones find the built RocksDB again.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$culver_cache/target}
export PATH=$culver_cache/tools/bin:$PATH
if ! command -v cargo >/dev/null && [[ -x $HOME/.cargo/bin/cargo ]]; then
  export PATH=$HOME/.cargo/bin:$PATH
fi
# `use_ccache` again after an installation that may have brought ccache.
use_ccache() {
  if command -v ccache >/dev/null; then
    export CC=${CC:-ccache cc} CXX=${CXX:-ccache c++}
  fi
}
use_ccache

binaries=$CARGO_TARGET_DIR/release

die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

# Builds everything, always the whole workspace, so that the features of no dependency ever change.
build() {
  cargo build --release --workspace
}

# A server with a test-only feature, under its own name: `build_faulty answer-before-sync` prints the path. The plain
# `culver` has to be built again after it, which links and compiles nothing that had been there before.
build_faulty() {
  local feature=$1 to=$binaries/culver-$1
  cargo build --release --workspace --bin culver --features "culver/$feature" >&2 || return
  cp --remove-destination "$binaries/culver" "$to" || return
  printf '%s\n' "$to"
}

# Prints COUNT TCP ports on loopback, ascending from FROM, on which nobody listens.
free_ports() {
  local count=$1 port=$2
  while ((count > 0 && port < 65536)); do
    if ! (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      printf '%s\n' "$port"
      count=$((count - 1))
    fi
    port=$((port + 1))
  done
}
