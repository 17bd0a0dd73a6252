#include "faults.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <execinfo.h>
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <set>

namespace offload::test::faults {

namespace {

struct State {
  std::mutex mutex;
  std::map<std::string, std::uint64_t> counts;
  std::map<std::string, std::set<const void*>> held;
  std::map<const void*, std::uint64_t> page_locked;
  std::string function;
  std::uint64_t number = 0;
  std::uint64_t left = 0; // of the calls that fail
};

State& state() {
  static State* const kState = new State; // calls come until the process has ended
  return *kState;
}

bool is_in_library(const void* address) {
  Dl_info info;
  return dladdr(address, &info) != 0 && info.dli_fname && std::strstr(info.dli_fname, "torch_offload") != nullptr;
}

/// Threads are started by the standard library, on behalf of somebody.
bool is_ours(const void* caller) {
  if (is_in_library(caller)) {
    return true;
  }
  Dl_info info;
  if (dladdr(caller, &info) == 0 || !info.dli_fname || std::strstr(info.dli_fname, "libstdc++") == nullptr) {
    return false;
  }
  std::array<void*, 6> frames{};
  const int count = backtrace(frames.data(), static_cast<int>(frames.size()));
  return std::any_of(frames.begin(), frames.begin() + count, is_in_library);
}

/// Counts one call of the library, and says whether it has to fail.
bool comes(const char* function, const void* caller) {
  if (!is_ours(caller)) {
    return false;
  }
  State& now = state();
  const std::lock_guard lock(now.mutex);
  const std::uint64_t number = now.counts[function]++;
  const bool fails = now.left > 0 && now.function == function && number >= now.number;
  now.left -= fails ? 1 : 0;
  return fails;
}

void record_taken(const char* function, const void* what, const void* caller) {
  if (is_ours(caller)) {
    State& now = state();
    const std::lock_guard lock(now.mutex);
    now.held[function].insert(what);
  }
}

/// Who gives it back does not matter, nor can it be told: the call may be the last thing that a function does.
void record_given_back(const char* function, const void* what) {
  State& now = state();
  const std::lock_guard lock(now.mutex);
  if (const auto held = now.held.find(function); held != now.held.end()) {
    held->second.erase(what);
  }
}

/// With all that was mapped into it.
void note_unmapped(const void* at, std::size_t bytes) {
  State& now = state();
  const std::lock_guard lock(now.mutex);
  auto& held = now.held["mmap"];
  held.erase(held.lower_bound(at), held.lower_bound(static_cast<const char*>(at) + bytes));
}

void note_page_locked(const void* at, std::size_t bytes, const void* caller) {
  constexpr std::uintptr_t kPage = 4096;
  record_taken("cudaHostRegister", at, caller);
  if (is_ours(caller)) {
    const auto begin = reinterpret_cast<std::uintptr_t>(at);
    const std::lock_guard lock(state().mutex);
    state().page_locked[at] = (begin + bytes + kPage - 1) / kPage * kPage - begin / kPage * kPage;
  }
}

void note_not_page_locked(const void* at) {
  record_given_back("cudaHostRegister", at);
  const std::lock_guard lock(state().mutex);
  state().page_locked.erase(at);
}

/// What the driver gave for what the library asked it for.
struct Driver {
  decltype(&cuMemCreate) create = nullptr;
  decltype(&cuMemMap) map = nullptr;
  decltype(&cuMemUnmap) unmap = nullptr;
};

template <class Function>
Function real(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

} // namespace

void reset() {
  State& now = state();
  const std::lock_guard lock(now.mutex);
  now.counts.clear();
  now.function.clear();
  now.left = 0;
}

void arm(const std::string& function, std::uint64_t number, std::uint64_t times) {
  State& now = state();
  const std::lock_guard lock(now.mutex);
  now.function = function;
  now.number = number;
  now.left = times;
}

void disarm() {
  const std::lock_guard lock(state().mutex);
  state().function.clear();
  state().left = 0;
}

bool fired() {
  const std::lock_guard lock(state().mutex);
  return state().left == 0;
}

std::map<std::string, std::uint64_t> counts() {
  const std::lock_guard lock(state().mutex);
  return state().counts;
}

std::map<std::string, std::size_t> held() {
  const std::lock_guard lock(state().mutex);
  std::map<std::string, std::size_t> counts;
  for (const auto& [function, what] : state().held) {
    counts[function] = what.size();
  }
  return counts;
}

std::uint64_t page_locked_bytes() {
  const std::lock_guard lock(state().mutex);
  std::uint64_t bytes = 0;
  for (const auto& [at, locked] : state().page_locked) {
    bytes += locked;
  }
  return bytes;
}

} // namespace offload::test::faults

namespace faults = offload::test::faults;

// NOLINTBEGIN(bugprone-macro-parentheses,readability-inconsistent-declaration-parameter-name): the arguments are
// types, parameter lists and argument lists, which can not stand in parentheses, and parameters of CUDA have other
// names
/// A function that the library calls: `failure` is what it returns when it fails; after a success, `note` is done.
#define OFFLOAD_INTERCEPT(result, name, parameters, arguments, failure, good, note) \
  extern "C" __attribute__((visibility("default"))) result name parameters {        \
    [[maybe_unused]] const void* caller = __builtin_return_address(0);              \
    if (faults::comes(#name, caller)) {                                             \
      return failure;                                                               \
    }                                                                               \
    static const auto real = faults::real<result(*) parameters>(#name);             \
    result got = real arguments;                                                    \
    if (got good) {                                                                 \
      note;                                                                         \
    }                                                                               \
    return got;                                                                     \
  }

#define OFFLOAD_INTERCEPT_CUDA(name, parameters, arguments, failure, note) \
  OFFLOAD_INTERCEPT(cudaError_t, name, parameters, arguments, failure, == cudaSuccess, note)

OFFLOAD_INTERCEPT(void*, mmap,
                  (void* at, std::size_t bytes, int protection, int flags, int file, off_t offset) noexcept,
                  (at, bytes, protection, flags, file, offset), (errno = ENOMEM, MAP_FAILED), != MAP_FAILED,
                  faults::record_taken("mmap", got, caller))
OFFLOAD_INTERCEPT(int, munmap, (void* at, std::size_t bytes) noexcept, (at, bytes), -1, == 0,
                  faults::note_unmapped(at, bytes))
OFFLOAD_INTERCEPT(int, madvise, (void* at, std::size_t bytes, int advice) noexcept, (at, bytes, advice),
                  (errno = EAGAIN, -1), == 0, )
OFFLOAD_INTERCEPT_CUDA(cudaMalloc, (void** at, std::size_t bytes), (at, bytes), cudaErrorMemoryAllocation,
                       faults::record_taken("cudaMalloc", *at, caller))
OFFLOAD_INTERCEPT_CUDA(cudaFree, (void* at), (at), cudaErrorInvalidValue, faults::record_given_back("cudaMalloc", at))
OFFLOAD_INTERCEPT_CUDA(cudaHostAlloc, (void** at, std::size_t bytes, unsigned flags), (at, bytes, flags),
                       cudaErrorMemoryAllocation, faults::record_taken("cudaHostAlloc", *at, caller))
OFFLOAD_INTERCEPT_CUDA(cudaFreeHost, (void* at), (at), cudaErrorInvalidValue,
                       faults::record_given_back("cudaHostAlloc", at))
OFFLOAD_INTERCEPT_CUDA(cudaHostRegister, (void* at, std::size_t bytes, unsigned flags), (at, bytes, flags),
                       cudaErrorMemoryAllocation, faults::note_page_locked(at, bytes, caller))
OFFLOAD_INTERCEPT_CUDA(cudaHostUnregister, (void* at), (at), cudaErrorInvalidValue, faults::note_not_page_locked(at))
OFFLOAD_INTERCEPT_CUDA(cudaHostGetDevicePointer, (void** there, void* here, unsigned flags), (there, here, flags),
                       cudaErrorInvalidValue, )
OFFLOAD_INTERCEPT_CUDA(cudaStreamCreateWithFlags, (cudaStream_t * stream, unsigned flags), (stream, flags),
                       cudaErrorMemoryAllocation, faults::record_taken("cudaStreamCreateWithFlags", *stream, caller))
OFFLOAD_INTERCEPT_CUDA(cudaStreamCreateWithPriority, (cudaStream_t * stream, unsigned flags, int priority),
                       (stream, flags, priority), cudaErrorMemoryAllocation,
                       faults::record_taken("cudaStreamCreateWithFlags", *stream, caller))
OFFLOAD_INTERCEPT_CUDA(cudaStreamDestroy, (cudaStream_t stream), (stream), cudaErrorInvalidValue,
                       faults::record_given_back("cudaStreamCreateWithFlags", stream))
OFFLOAD_INTERCEPT_CUDA(cudaEventCreateWithFlags, (cudaEvent_t * event, unsigned flags), (event, flags),
                       cudaErrorMemoryAllocation, faults::record_taken("cudaEventCreateWithFlags", *event, caller))
OFFLOAD_INTERCEPT_CUDA(cudaEventDestroy, (cudaEvent_t event), (event), cudaErrorInvalidValue,
                       faults::record_given_back("cudaEventCreateWithFlags", event))
OFFLOAD_INTERCEPT_CUDA(cudaEventRecord, (cudaEvent_t event, cudaStream_t stream), (event, stream),
                       cudaErrorInvalidResourceHandle, )
OFFLOAD_INTERCEPT_CUDA(cudaStreamWaitEvent, (cudaStream_t stream, cudaEvent_t event, unsigned flags),
                       (stream, event, flags), cudaErrorInvalidResourceHandle, )
OFFLOAD_INTERCEPT_CUDA(cudaMemcpyAsync,
                       (void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream),
                       (to, from, bytes, kind, stream), cudaErrorInvalidValue, )
OFFLOAD_INTERCEPT_CUDA(cudaMemcpy, (void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind),
                       (to, from, bytes, kind), cudaErrorInvalidValue, )
/// Functions of the driver that the library asks for by name, each in a shape that counts and fails.
namespace {

faults::Driver real_driver;

CUresult create(CUmemGenericAllocationHandle* piece, std::size_t bytes, const CUmemAllocationProp* properties,
                unsigned long long flags) {
  return faults::comes("cuMemCreate", __builtin_return_address(0))
             ? CUDA_ERROR_OUT_OF_MEMORY
             : real_driver.create(piece, bytes, properties, flags);
}

CUresult map(CUdeviceptr at, std::size_t bytes, std::size_t offset, CUmemGenericAllocationHandle piece,
             unsigned long long flags) {
  const void* caller = __builtin_return_address(0);
  if (faults::comes("cuMemMap", caller)) {
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  const CUresult got = real_driver.map(at, bytes, offset, piece, flags);
  if (got == CUDA_SUCCESS) {
    faults::record_taken("cuMemMap", std::bit_cast<const void*>(at), caller);
  }
  return got;
}

CUresult unmap(CUdeviceptr at, std::size_t bytes) {
  faults::record_given_back("cuMemMap", std::bit_cast<const void*>(at));
  return real_driver.unmap(at, bytes);
}

template <typename Function>
void replace(const char* name, const char* wanted, void** found, Function& real, Function ours) {
  if (std::strcmp(name, wanted) == 0) {
    real = reinterpret_cast<Function>(*found);
    *found = reinterpret_cast<void*>(ours);
  }
}

void replace_all(const char* name, void** found) {
  replace(name, "cuMemCreate", found, real_driver.create, &create);
  replace(name, "cuMemMap", found, real_driver.map, &map);
  replace(name, "cuMemUnmap", found, real_driver.unmap, &unmap);
}

} // namespace

OFFLOAD_INTERCEPT_CUDA(cudaGetDriverEntryPointByVersion,
                       (const char* name, void** found, unsigned since, unsigned long long flags,
                        cudaDriverEntryPointQueryResult* result),
                       (name, found, since, flags, result), cudaErrorMissingConfiguration,
                       if (faults::is_ours(caller)) replace_all(name, found))
OFFLOAD_INTERCEPT_CUDA(cudaMemGetInfo, (std::size_t* free, std::size_t* total), (free, total), cudaErrorUnknown, )
OFFLOAD_INTERCEPT(int, pthread_create,
                  (pthread_t * thread, const pthread_attr_t* attributes, void* (*run)(void*), void* argument) noexcept,
                  (thread, attributes, run, argument), EAGAIN, == 0, )
// NOLINTEND(bugprone-macro-parentheses,readability-inconsistent-declaration-parameter-name)
