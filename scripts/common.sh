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
# RocksDB's checksums are several times faster with these; processors have had them since 2011.
if [[ $(uname -m) == x86_64 ]]; then
  export CXXFLAGS=${CXXFLAGS:--msse4.2 -mpclmul}
fi

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

# Prints a command of the load generator, and gives way to it.
run_loadgen() {
  echo "\$ culver-loadgen $*"
  exec "$binaries/culver-loadgen" "$@"
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

server_pid='' server_dir='' target=() # set by start_server

# start_server FOLDER SERVER-ARGUMENTS…: starts a server on free ports with a data directory of its own;
# "${target[@]}" is then how the load generator finds it. Its log goes to FOLDER/server.log.
start_server() {
  local folder=$1 listen ops
  shift
  read -r -d '' listen ops < <(free_ports 2 7700) || true
  server_dir=$folder/data
  target=(--target "127.0.0.1:$listen" --ops "127.0.0.1:$ops" --credentials "$server_dir/dev-credentials.json")
  echo "\$ culver serve --data-dir $server_dir --listen 127.0.0.1:$listen --ops 127.0.0.1:$ops $* &"
  "$binaries/culver" serve --data-dir "$server_dir" --listen "127.0.0.1:$listen" --ops "127.0.0.1:$ops" "$@" \
    >"$folder/server.log" 2>&1 </dev/null &
  server_pid=$!
  wait_until_ready "$ops" && return
  cat "$folder/server.log" >&2
  die "the server did not become ready"
}

wait_until_ready() {
  local port=$1 status
  for _ in {1..300}; do
    kill -0 "$server_pid" 2>/dev/null || return
    if exec {http}<>"/dev/tcp/127.0.0.1/$port"; then
      printf 'GET /readyz HTTP/1.0\r\n\r\n' >&"$http"
      read -r status <&"$http" || status=''
      exec {http}>&-
      [[ $status != *' 200'* ]] || return 0
    fi 2>/dev/null
    sleep 0.1
  done
  return 1
}

# Ends the server as an operator would, and says with what it ended if that is not 0.
stop_server() {
  [[ -n $server_pid ]] || return 0
  local rc=0
  kill -TERM "$server_pid" 2>/dev/null || true
  wait "$server_pid" || rc=$?
  server_pid=''
  [[ $rc == 0 ]] || die "the server ended with $rc on SIGTERM"
}

# As many descriptors as may be had without asking anyone.
raise_descriptor_limit() {
  ulimit -Sn "$(ulimit -Hn)"
}
