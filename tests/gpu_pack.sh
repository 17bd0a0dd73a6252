#!/usr/bin/env bash
# Gathers what tests/gpu.sh runs, stripped, in one folder that can be carried to a machine with a GPU.
# usage: tests/gpu_pack.sh [BUILD_DIR [FOLDER]]      default: build/release build/gpu
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build/release}
folder=${2:-build/gpu}
mkdir -p "$folder"
cp "$build"/tools/{plan,run,bench,serve} "$build"/tests/{device_test,device_memory_test,device_faults_test,device_life_test,file_benchmark,load,matrix,pool_load,soak,libcustom_ops.so} "$build"/models/make_model "$folder"
cp -L "$build"/offload/libtorch_offload.so.0.1 "$folder"
strip "$folder"/{plan,run,bench,serve,device_test,device_memory_test,device_faults_test,device_life_test,file_benchmark,load,matrix,pool_load,soak,make_model,libcustom_ops.so,libtorch_offload.so.0.1}
git describe --always --dirty >"$folder/commit"
for library in liburing.so.2 libcpp-httplib.so; do # few machines have them
  cp -L "$(ldconfig -p | awk -v library="$library" 'index($1, library) == 1 && /\.so\.[0-9]/ {print $NF; exit}')" "$folder"
done
