# Has torch.cmake take the torch of the Python that the package is built for, and an nvcc that lies beside it.
find_package(Python 3.11 REQUIRED COMPONENTS Interpreter)
execute_process(
  COMMAND ${Python_EXECUTABLE} -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
  OUTPUT_VARIABLE torch_of_python OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE no_torch)
if(no_torch)
  message(FATAL_ERROR "${Python_EXECUTABLE} has no torch: the package is built against the torch that it will be used with. "
    "Install that, and then: pip install scikit-build-core cmake ninja && pip install --no-build-isolation . (docs/python.md)")
endif()
get_filename_component(OFFLOAD_TORCH_PACKAGES "${torch_of_python}" DIRECTORY)

file(GLOB toolkit "${OFFLOAD_TORCH_PACKAGES}/nvidia/cu[0-9]*")
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX} AND NOT CUDAToolkit_ROOT AND NOT DEFINED ENV{CUDAToolkit_ROOT})
  if(NOT EXISTS "${toolkit}/bin/nvcc")
    message(FATAL_ERROR "There is no nvcc beside torch. Install one of the same CUDA, as in: pip install 'nvidia-cuda-nvcc==13.0.*' "
      "'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*' 'nvidia-cuda-cccl==13.0.*', or give its path in CUDACXX (docs/python.md).")
  endif()
  # nvcc and CMake look for names without a version, which wheels do not have: they find them in the build.
  set(links "${PROJECT_BINARY_DIR}/cuda")
  file(GLOB libraries "${toolkit}/lib/lib*.so.*")
  file(MAKE_DIRECTORY "${links}")
  foreach(library IN LISTS libraries)
    get_filename_component(name "${library}" NAME)
    string(REGEX REPLACE "\\.so\\..*" ".so" plain "${name}")
    file(CREATE_LINK "${library}" "${links}/${plain}" SYMBOLIC)
  endforeach()
  set(ENV{LIBRARY_PATH} "${links}:$ENV{LIBRARY_PATH}") # while CMake tries the compiler
  list(PREPEND CMAKE_LIBRARY_PATH "${links}")
  set(CUDA_CUDART "${links}/libcudart.so" CACHE FILEPATH "")
endif()
