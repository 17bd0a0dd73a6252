#include <tests/spin.h>

namespace offload {

namespace {

__global__ void spin_for(long long nanoseconds) {
  unsigned long long begin = 0;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(begin));
  unsigned long long now = begin;
  while (static_cast<long long>(now - begin) < nanoseconds) {
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  }
}

} // namespace

void spin(cudaStream_t stream, double microseconds) {
  spin_for<<<1, 1, 0, stream>>>(static_cast<long long>(microseconds * 1e3));
}

} // namespace offload
