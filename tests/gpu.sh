#!/usr/bin/env bash
# All evidence that needs a GPU, in one call: tests, exported models, sanitizer, figures. It runs binaries that were built
# elsewhere and carried here, on a machine that has PyTorch 2.11 with CUDA 13 for its python3.
# usage: tests/gpu.sh BINARIES OUT [PART ...]      parts: tests models sanitizer bench; default: all
#   BINARIES   a folder as tests/gpu_pack.sh makes it        OUT   where logs and figures go
set -uo pipefail
binaries=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
project=$(cd "$(dirname "$0")/.." && pwd)
shift 2
parts=${*:-tests models sanitizer bench}
torch=$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))')
LD_LIBRARY_PATH=$binaries:$torch/lib:$(printf '%s:' "$torch"/../nvidia/*/lib)
export LD_LIBRARY_PATH
failed=0

part() {
  local name=$1 begin=$SECONDS
  shift
  [[ " $parts " == *" $name "* ]] || return 0
  if "$@" >"$out/$name.log" 2>&1; then
    echo "$name: passed, $((SECONDS - begin)) s"
  else
    echo "$name: FAILED (exit $?), $((SECONDS - begin)) s; the end of $name.log:"
    tail -n 25 "$out/$name.log"
    failed=1
  fi
}

tests() { "$binaries/device_test" --gtest_output="json:$out/tests.json"; }

# Whatever can be exported here; all-MiniLM-L6-v2 comes from a package that may not be there.
models() {
  local name
  for name in vit vgg encoder bert minilm; do
    [ -e "$binaries/exported/$name.pt" ] || python3 "$project/models/export.py" "$name" --full "$binaries/exported" ||
      echo "not exported: $name"
  done
  python3 "$project/tests/models_test.py" "$binaries" "$binaries/exported" --device cuda:0
}

# Small sizes: a sanitizer runs matrix products hundreds of times slower. It finds bad addresses, races inside kernels and reads
# of unwritten memory; a missing wait between streams it does not see.
sanitizer() {
  local tool status=0
  local few='Module.EveryDtypeAndRank:Module.Tied*:Module.Branches*:Module.ErrorsOf*:Module.Integer*'
  for tool in memcheck racecheck synccheck; do
    echo "== $tool"
    timeout 90 compute-sanitizer --tool "$tool" --error-exitcode 9 "$binaries/device_test" --gtest_filter="$few" || status=1
  done
  # It does not see what cuBLAS writes by bulk copies of Hopper, and reports memory that nothing else wrote before. So does
  # the plain model in Python, given fresh memory for every tensor: both logs say where.
  echo "== initcheck of the plain model in Python"
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 60 compute-sanitizer --tool initcheck --print-limit 2 \
    python3 "$project/tests/initcheck_control.py"
  echo "== initcheck"
  timeout 90 compute-sanitizer --tool initcheck --print-limit 2 "$binaries/device_test" --gtest_filter="$few"
  return "$status"
}

bench() { "$binaries/bench" --output-dir "$out"; }

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
for name in tests models sanitizer bench; do
  part "$name" "$name"
done
exit "$failed"
