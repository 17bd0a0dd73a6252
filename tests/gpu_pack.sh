#!/usr/bin/env bash
# Gathers what tests/gpu.sh runs, stripped, in one folder that can be carried to a machine with a GPU.
# usage: tests/gpu_pack.sh [BUILD_DIR [FOLDER]]      default: build/release build/gpu
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build/release}
folder=${2:-build/gpu}
mkdir -p "$folder"
cp "$build"/tools/{plan,run,bench} "$build"/tests/{device_test,device_memory_test,device_faults_test,device_life_test,file_benchmark,load,matrix,pool_load,soak,libcustom_ops.so} "$build"/models/make_model "$folder"
cp -L "$build"/offload/libtorch_offload.so.0.1 "$folder"
strip "$folder"/{plan,run,bench,device_test,device_memory_test,device_faults_test,device_life_test,file_benchmark,load,matrix,pool_load,soak,make_model,libcustom_ops.so,libtorch_offload.so.0.1}
git describe --always --dirty >"$folder/commit"
cp -L "$(ldconfig -p | awk '$1 == "liburing.so.2" {print $NF; exit}')" "$folder" # few machines have it
