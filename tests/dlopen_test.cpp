// A program that does not know the library when it is linked, loads it, and lets it go again.
//
// usage: dlopen_test LIBTORCH_OFFLOAD.so

#include <dlfcn.h>
#include <torch/csrc/jit/runtime/operator.h>

#include <cstdio>

namespace {

bool has_operators() {
  return !torch::jit::getAllOperatorsFor(c10::Symbol::fromQualString("offload::acquire")).empty();
}

} // namespace

int main(int argc, char** argv) {
  if (argc != 2 || has_operators()) {
    std::fprintf(stderr, "usage: dlopen_test LIBTORCH_OFFLOAD.so, which is not linked\n");
    return 2;
  }
  for (int i = 0; i < 10; ++i) {
    void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      std::fprintf(stderr, "%s\n", dlerror());
      return 1;
    }
    if (!has_operators()) {
      std::fprintf(stderr, "round %d: the operators are not registered\n", i);
      return 1;
    }
    if (dlclose(library) != 0) {
      std::fprintf(stderr, "%s\n", dlerror());
      return 1;
    }
  }
  return 0;
}
