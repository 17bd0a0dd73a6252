#!/usr/bin/env bash
# All evidence that needs a GPU, in one call: tests, exported models, sanitizer, figures. It runs binaries that were built
# elsewhere and carried here, on a machine that has PyTorch 2.11 with CUDA 13 for its python3.
# usage: tests/gpu.sh BINARIES OUT [PART ...]      parts: tests load pool bench errors rules models file sanitizer; default: all
#   BINARIES   a folder as tests/gpu_pack.sh makes it        OUT   where logs and figures go
set -uo pipefail
binaries=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
project=$(cd "$(dirname "$0")/.." && pwd)
shift 2
parts=${*:-tests load pool bench errors rules models file sanitizer}
torch=$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))')
LD_LIBRARY_PATH=$binaries:$torch/lib:$(printf '%s:' "$torch"/../nvidia/*/lib)
OFFLOAD_BENCH_COMMIT=$(cat "$binaries/commit")
export LD_LIBRARY_PATH OFFLOAD_BENCH_COMMIT
export TORCH_CPP_LOG_LEVEL=ERROR # plain cuDNN warns of recurrent weights at each call
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

tests() {
  local status=0 name
  timeout -k 10 200 "$binaries/device_test" --gtest_output="json:$out/tests.json" || status=1 # a test that hangs is the last one named
  timeout -k 10 100 "$binaries/device_memory_test" || status=1
  timeout -k 10 100 "$binaries/device_faults_test" || status=1
  for name in TenModules AThousand AProcess AModule AThread; do # each in a process that has not used the device yet
    timeout -k 10 60 "$binaries/device_life_test" --gtest_filter="*$name*" || status=1
  done
  return "$status"
}

# Threads that call with sizes drawn at random: a language model of 2 GiB, images, sequences; budgets that change meanwhile.
load() {
  local status=0
  timeout -k 10 300 "$binaries/load" --device cuda:0 --flash --calls 200 --budgets 1GiB,2GiB,8GiB || status=1
  timeout -k 10 60 "$binaries/load" --device cuda:0 --calls 20 --lanes 4 --budgets 2GiB || status=1 # with what cuDNN plans
  timeout -k 10 60 "$binaries/load" --device cuda:0 --threads 16 --calls 40 --sizes 1000,1024,24 --lanes 1 --budgets 1GiB --changes 40 ||
    status=1
  python3 "$project/models/export.py" resnet vit lstm "$made/load" || status=1
  timeout -k 10 60 "$binaries/load" --device cuda:0 --model "$made/load/resnet.pt" --input 'float32[2,3,*,*]' --sizes 64,256,8 --calls 50 \
    --lanes 1,4 --budgets 192MiB,1GiB || status=1
  timeout -k 10 60 "$binaries/load" --device cuda:0 --model "$made/load/lstm.pt" --input 'int64[2,*]<3000' --sizes 4,64 --calls 50 \
    --lanes 1,4 --budgets 192MiB,1GiB || status=1
  timeout -k 10 60 "$binaries/load" --device cuda:0 --model "$made/load/vit.pt" --input 'float32[*,3,64,64]' --sizes 1,16 --calls 50 \
    --lanes 1,4 --budgets 192MiB,1GiB || status=1
  return "$status"
}

# Ten models of 12 GiB in 4, by Zipf's law; OFFLOAD_POOL_SECONDS for each way.
pool() {
  local status=0 of=$made/pool
  python3 "$project/models/export.py" --full vit resnet bert lstm "$of" || status=1
  timeout -k 10 580 "$binaries/pool_load" --device cuda:0 --budget 4GiB --how pool,fixed,plain --seconds "${OFFLOAD_POOL_SECONDS:-60}" \
    --transformers 1GiB,2GiB,1GiB,2GiB,3GiB,2GiB --model "$of/vit.pt=float32[1,3,224,224]" --model "$of/resnet.pt=float32[1,3,224,224]" \
    --model "$of/bert.pt=int64[1,*]<30522;int64[1,*]<2;int64[1,*]<2" --model "$of/lstm.pt=int64[1,*]<32000" || status=1
  return "$status"
}

# Real architectures in their real sizes, small ones for everything that modules do, random ones. What the packages here
# can not export is said.
made=$out/../models.$$
make_models() {
  local status=0
  mkdir -p "$made"
  python3 "$project/models/export.py" vit vgg encoder bert --full "$made/full" || status=1
  python3 "$project/models/export.py" swin decoder gpt2 t5 llama lstm moe exits "$made/real" || status=1
  python3 "$project/tests/small_models.py" "$made/small" --library "$binaries/libcustom_ops.so" \
    --make-model "$binaries/make_model" --width 640 || status=1
  python3 "$project/tests/random_models.py" "$made/random" --seed 1 --count 50 --width 384 || status=1
  "$binaries/make_model" transformer --layers 4 --width 1024 --heads 16 --vocab 256000 --dtype bfloat16 "$made/language.pt"
  python3 -c 'import sys, torch; torch.save([[torch.randint(0, 256000, (1, 128))]], sys.argv[1])' "$made/language.inputs.pt"
  return "$status"
}

models() {
  local status=0 folder pid
  local -a pids=()
  for folder in small random real full; do
    "$binaries/matrix" --device cuda:0 --library "$binaries/libcustom_ops.so" "$made/$folder" >"$made/$folder.log" 2>&1 &
    pids+=($!)
  done
  python3 "$project/tests/models_test.py" "$binaries" "$made/full" encoder --device cuda:0 >"$made/encoder.log" 2>&1 &
  pids+=($!)
  for pid in "${pids[@]}"; do
    wait "$pid" || status=1
  done
  cat "$made"/{small,random,real,full,encoder}.log
  return "$status"
}

# Small sizes: a sanitizer runs matrix products hundreds of times slower. It finds bad addresses, races inside kernels and reads
# of unwritten memory; a missing wait between streams it does not see.
sanitizer() {
  local tool status=0
  local few='Module.EveryDtypeAndRank:Module.Tied*:Module.Branches*:Module.ErrorsOf*:Module.Integer*'
  for tool in memcheck racecheck synccheck; do
    echo "== $tool"
    timeout -k 10 90 compute-sanitizer --tool "$tool" --error-exitcode 9 "$binaries/device_test" --gtest_filter="$few" || status=1
  done
  # It does not see what cuBLAS writes by bulk copies of Hopper, and reports memory that nothing else wrote before. So does
  # the plain model in Python, given fresh memory for every tensor: both logs say where.
  echo "== initcheck of the plain model in Python"
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout -k 10 60 compute-sanitizer --tool initcheck --print-limit 2 \
    python3 "$project/tests/initcheck_control.py"
  echo "== initcheck"
  timeout -k 10 90 compute-sanitizer --tool initcheck --print-limit 2 "$binaries/device_test" --gtest_filter="$few"
  return "$status"
}

# Weights that host memory has no room for: from the page cache, and past it beside what the disk does.
file() {
  local status=0 archive=$out/../file.$$.pt device
  "$binaries/bench" --profile || status=1
  "$binaries/make_model" stack --layers 128 --features 2048 "$archive" || status=1
  "$binaries/run" "$archive" --vram 512MiB --host 256MiB --input 'float32[64,2048]' --calls 5 --check || status=1
  rm -f "$archive"
  for device in cuda:0 cpu; do
    echo "== $device"
    python3 "$project/tests/file_figures.py" "$binaries" "$out/.." --layers 48 --rounds 2 --device "$device" || status=1
  done
  return "$status"
}

bench() {
  local status=0
  "$binaries/bench" --calls 12 --output-dir "$out" || status=1
  "$binaries/bench" --model "$made/full/vit.pt" --model "$made/full/encoder.pt" --model "$made/full/bert.pt" \
    --model "$made/language.pt" --output-dir "$out/models" || status=1
  return "$status"
}

# How true predictions are, before the first call and after two.
errors() {
  local models=(--model "$made/full/vit.pt" --model "$made/full/encoder.pt" --model "$made/full/bert.pt" --model "$made/language.pt")
  "$binaries/bench" --errors "${models[@]}" --output-dir "$out/errors"
}

# What calls take where other weights stay.
rules() {
  "$binaries/bench" --rules --model "$made/full/vit.pt" --model "$made/full/bert.pt" --model "$made/language.pt" \
    --output-dir "$out/rules"
}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
# Models are made beside what needs little of the processors; nothing runs beside what is timed.
if [[ " $parts " == *" models "* || " $parts " == *" bench "* || " $parts " == *" errors "* || " $parts " == *" rules "* ]]; then
  make_models >"$out/made.log" 2>&1 &
  making=$!
fi
part tests tests
[[ -z ${making:-} ]] || wait "$making" || { cat "$out/made.log"; failed=1; }
part load load
part pool pool
part bench bench
part errors errors
part rules rules
part file file
(part models models; exit "$failed") &
checking=$!
part sanitizer sanitizer
wait "$checking" || failed=1
rm -rf "$made"
exit "$failed"
