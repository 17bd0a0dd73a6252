#include "scarce.h"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace {

struct Grant {
  int left = -1; // negative when none is counted
  bool once = false;
  bool refused = false;
};

thread_local Grant grant;

/// Of all threads but one.
struct Others {
  std::atomic<int> left = -1;
  std::atomic<bool> once = false;
  std::atomic<bool> refused = false;
};
Others others;
thread_local bool is_exempt = false;

void count_others() {
  if (is_exempt || others.left < 0) {
    return;
  }
  int left = others.left;
  while (left > 0 && !others.left.compare_exchange_weak(left, left - 1)) {
  }
  if (left == 0 && (!others.once || others.left.compare_exchange_strong(left, -1))) {
    others.refused = true;
    throw std::bad_alloc();
  }
}

void* allocate(std::size_t bytes, std::size_t alignment) {
  if (grant.left == 0) {
    grant.refused = true;
    grant.left = grant.once ? -1 : 0;
    throw std::bad_alloc();
  }
  grant.left -= grant.left > 0 ? 1 : 0;
  count_others();
  if (bytes > SIZE_MAX - alignment) {
    throw std::bad_alloc();
  }
  const std::size_t padded = (bytes + alignment) / alignment * alignment;
  if (void* data = std::aligned_alloc(alignment, padded)) {
    return data;
  }
  throw std::bad_alloc();
}

} // namespace

void* operator new(std::size_t bytes) { return allocate(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* data) noexcept { std::free(data); }
void operator delete(void* data, std::size_t) noexcept { std::free(data); }
void operator delete(void* data, std::align_val_t) noexcept { std::free(data); }
void operator delete(void* data, std::size_t, std::align_val_t) noexcept { std::free(data); }

namespace offload::test {

Scarce::Scarce(int allocations, bool once, Whose whose) {
  if (whose == Whose::mine) {
    grant = {allocations, once, false};
    return;
  }
  is_exempt = true;
  others.refused = false;
  others.once = once;
  others.left = allocations;
}

Scarce::~Scarce() {
  grant = {};
  others.left = -1;
  is_exempt = false;
}

bool Scarce::ran_out() { return grant.refused || others.refused; }

} // namespace offload::test
