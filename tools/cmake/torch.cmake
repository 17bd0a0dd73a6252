# Finds LibTorch and CUDA and makes the target `torch`, whose headers are system headers, and CUDA a language.
#
# What the user names is taken, through CMake's usual variables: Torch_DIR, Torch_ROOT or CMAKE_PREFIX_PATH; CMAKE_CUDA_COMPILER,
# CUDACXX or CUDAToolkit_ROOT; TORCH_CUDA_ARCH_LIST or CMAKE_CUDA_ARCHITECTURES. Else the virtual environment that tools/setup.sh
# makes, ahead of what the system has, so that a build is the same on every machine.
# It uses interfaces of PyTorch that are not public: docs/torch.md lists them, and with which versions each was tried.
set(OFFLOAD_OLDEST_TORCH 2.11)
set(OFFLOAD_NEWEST_TORCH 2.15)
set(OFFLOAD_TORCH_RANGE "${OFFLOAD_OLDEST_TORCH} to ${OFFLOAD_NEWEST_TORCH}")
if(DEFINED OFFLOAD_TORCH_OF_BUILD) # what is built runs with the version that it was built with only
  set(OFFLOAD_OLDEST_TORCH ${OFFLOAD_TORCH_OF_BUILD})
  set(OFFLOAD_NEWEST_TORCH ${OFFLOAD_TORCH_OF_BUILD})
  set(OFFLOAD_TORCH_RANGE "${OFFLOAD_TORCH_OF_BUILD}, with which TorchOffload was built")
endif()
if(NOT DEFINED OFFLOAD_TORCH_PACKAGES)
  file(GLOB OFFLOAD_TORCH_PACKAGES "${OFFLOAD_VENV}/lib/python3*/site-packages")
endif()

# --- CUDA. Before find_package(Torch), which would look for an nvcc of its own.
set(nvcc_hint "${CMAKE_CUDA_COMPILER}$ENV{CUDACXX}")
set(toolkit_hint "${CUDAToolkit_ROOT}")
if(NOT toolkit_hint)
  set(toolkit_hint "$ENV{CUDAToolkit_ROOT}")
endif()
if(NOT nvcc_hint AND toolkit_hint)
  set(CMAKE_CUDA_COMPILER "${toolkit_hint}/bin/nvcc")
elseif(NOT nvcc_hint)
  foreach(packages IN LISTS OFFLOAD_TORCH_PACKAGES)
    if(EXISTS "${packages}/nvidia/cu13/bin/nvcc")
      set(CMAKE_CUDA_COMPILER "${packages}/nvidia/cu13/bin/nvcc")
    endif()
  endforeach()
endif()

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  # Those of the wheel, and PTX of the last for what comes after it.
  set(arch_default "7.5;8.0;8.6;9.0;10.0;12.0+PTX")
  if(DEFINED ENV{TORCH_CUDA_ARCH_LIST})
    string(REPLACE " " ";" arch_default "$ENV{TORCH_CUDA_ARCH_LIST}")
  endif()
  set(TORCH_CUDA_ARCH_LIST "${arch_default}" CACHE STRING "Device code, as PyTorch spells it")
  foreach(arch IN LISTS TORCH_CUDA_ARCH_LIST)
    if(NOT arch MATCHES "^([0-9]+)\\.([0-9]a?f?)(\\+PTX)?$")
      message(FATAL_ERROR "TORCH_CUDA_ARCH_LIST: '${arch}' is not of the form 8.6 or 8.6+PTX")
    endif()
    set(number "${CMAKE_MATCH_1}${CMAKE_MATCH_2}")
    if(CMAKE_MATCH_3)
      list(APPEND CMAKE_CUDA_ARCHITECTURES ${number})
    else()
      list(APPEND CMAKE_CUDA_ARCHITECTURES ${number}-real)
    endif()
  endforeach()
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_RUNTIME_LIBRARY Shared) # the one that torch uses
enable_language(CUDA)
# Else a libcudart that lies in /usr/local/lib would be linked instead of that of the compiler.
find_library(CUDA_CUDART cudart NO_DEFAULT_PATH
  HINTS "${CMAKE_CUDA_COMPILER_TOOLKIT_LIBRARY_ROOT}" "${CMAKE_CUDA_COMPILER_TOOLKIT_ROOT}"
  PATH_SUFFIXES lib64 lib targets/x86_64-linux/lib)
find_package(CUDAToolkit REQUIRED)

# --- LibTorch. The version is checked before anything of another version is run.
find_package(Torch 999999 QUIET CONFIG HINTS ${OFFLOAD_TORCH_PACKAGES}) # finds none, but notes what there is
if(NOT Torch_CONSIDERED_CONFIGS)
  message(FATAL_ERROR "No LibTorch found. Supported is ${OFFLOAD_TORCH_RANGE}, for CUDA: run tools/setup.sh, which installs "
    "one into build/venv, or give -DTorch_DIR=.../torch/share/cmake/Torch.")
endif()
list(GET Torch_CONSIDERED_CONFIGS 0 torch_config)
list(GET Torch_CONSIDERED_VERSIONS 0 torch_version)
get_filename_component(torch_dir "${torch_config}" DIRECTORY)
string(REGEX MATCH "^[0-9]+\\.[0-9]+" torch_minor "${torch_version}")
if(torch_minor VERSION_LESS OFFLOAD_OLDEST_TORCH OR torch_minor VERSION_GREATER OFFLOAD_NEWEST_TORCH)
  message(FATAL_ERROR "LibTorch ${torch_version} was found in ${torch_dir}. Supported is ${OFFLOAD_TORCH_RANGE}: run "
    "tools/setup.sh, which installs one into build/venv, or give -DTorch_DIR=.../torch/share/cmake/Torch of such a version.")
endif()
set(Torch_DIR "${torch_dir}" CACHE PATH "Where TorchConfig.cmake is" FORCE)

# In a function, so that the flags and the standard that Torch's configuration sets for all targets stay behind in it.
function(offload_find_torch)
  # Torch's own copies of CMake's old CUDA modules: keep them on the toolkit that was chosen above.
  get_filename_component(toolkit "${CUDAToolkit_BIN_DIR}" DIRECTORY)
  set(CUDA_TOOLKIT_ROOT_DIR "${toolkit}" CACHE PATH "" FORCE)
  mark_as_advanced(CUDA_TOOLKIT_ROOT_DIR)
  set(CMAKE_MESSAGE_LOG_LEVEL WARNING)
  unset(CMAKE_CUDA_ARCHITECTURES)  # else it warns that it ignores them
  set(TORCH_CUDA_ARCH_LIST 9.0)    # else it runs a program on the GPU; the flags it makes of it stay here
  set(kineto_LIBRARY unused)       # else it warns: the wheel has this static library built in
  find_package(Torch REQUIRED CONFIG)
endfunction()
offload_find_torch()
set(TORCH_LIBRARIES torch)
# The wheel has MKL built in; what is set here are directories of a machine.
set_target_properties(caffe2::mkl PROPERTIES INTERFACE_LINK_DIRECTORIES "" INTERFACE_LINK_LIBRARIES "" INTERFACE_INCLUDE_DIRECTORIES "")
if(NOT TARGET c10_cuda)
  message(FATAL_ERROR "LibTorch ${torch_version} in ${torch_dir} was built without CUDA.")
endif()
if(EXISTS "${torch_dir}/../../../version.py")
  file(STRINGS "${torch_dir}/../../../version.py" line REGEX "^cuda.*'[0-9.]+'")
  if(line MATCHES "'([0-9]+)\\." AND NOT CMAKE_MATCH_1 EQUAL CUDAToolkit_VERSION_MAJOR)
    message(FATAL_ERROR "LibTorch in ${torch_dir} was built with CUDA ${CMAKE_MATCH_1}; the toolkit in ${CUDAToolkit_BIN_DIR} is "
      "${CUDAToolkit_VERSION}. Give -DCMAKE_CUDA_COMPILER=... of the same major version.")
  endif()
endif()
message(STATUS "LibTorch ${torch_version} in ${torch_dir}; CUDA ${CUDAToolkit_VERSION}, ${CMAKE_CUDA_COMPILER}")
