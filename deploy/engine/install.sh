#!/usr/bin/env bash
# vLLM for NVIDIA GPUs into an environment of its own: what `make engine` runs. Nothing to do when it is there.
#
# ENGINE_ENV           where it is installed (default: .venv-engine in the repository root)
# ENGINE_REQUIREMENTS  what is installed (default: requirements.txt beside this file)
# PYTHON               the interpreter to install with (default: python3)
# When vLLM cannot be installed this says why in one line, on standard error, and exits with 1.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target=${ENGINE_ENV:-$(cd "$here/../.." && pwd)/.venv-engine}
requirements=${ENGINE_REQUIREMENTS:-$here/requirements.txt}
version=$(sed -n 's/^vllm==//p' "$requirements")
python=${PYTHON:-python3}
stamp=$target/.installed
log=$target/install.log
needed_kb=14000000

fail() {
  echo "vLLM $version cannot be installed here: $1" >&2
  exit 1
}

check_machine() {
  [ "$(uname -s)" = Linux ] || fail "it needs Linux"
  case $(uname -m) in x86_64 | aarch64) ;; *) fail "there are no builds for $(uname -m)" ;; esac
  command -v "$python" >/dev/null || fail "there is no $python"
  "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' ||
    fail "it needs Python 3.11 to 3.13, $python is $("$python" -c 'import platform; print(platform.python_version())')"
  # kernels are compiled when the engine starts, with the interpreter's own headers
  command -v cc >/dev/null || command -v gcc >/dev/null || fail "it needs a C compiler (Debian: apt-get install gcc)"
  "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
    fail "it needs Python's headers (Debian: apt-get install python3-dev)"
  local free_kb
  mkdir -p "$target" 2>/dev/null || fail "$target cannot be created"
  free_kb=$(df -Pk "$target" | awk 'NR == 2 { print $4 }')
  [ "$free_kb" -gt $needed_kb ] || fail "$target has $((free_kb / 1000)) MB free, $((needed_kb / 1000)) MB are needed"
}

wanted="vllm $version $(sha256sum "$requirements" | cut -c1-16) $("$python" --version 2>&1 || true)"
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
  echo "vLLM $version is in $target"
  exit
fi
check_machine
exec 9>"$target/.lock"
flock 9 # two runs at the same time: the second finds the work done
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then exit; fi
echo "installing vLLM $version into $target (about 12 GB; the log is $log)"
rm -f "$stamp" "$log"
"$python" -m venv "$target" >"$log" 2>&1 ||
  fail "$python cannot make an environment (Debian: apt-get install python3-venv; all of it: $log)"
if ! "$target/bin/python" -m pip --disable-pip-version-check --no-input install --progress-bar off \
  -r "$requirements" >>"$log" 2>&1; then
  fail "$(grep -m1 -E '^(ERROR|error)' "$log" | cut -c1-300 || true) (all of it: $log)"
fi
[ -x "$target/bin/vllm" ] || fail "there is no vllm command in it (all of it: $log)"
echo "$wanted" >"$stamp"
echo "vLLM $version is in $target"
