#include <offload/device/memory.h>

#include <c10/cuda/CUDACachingAllocator.h>
#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <cstring>
#include <string>
#include <utility>

#include <offload/bytes.h>
#include <offload/core/promises.h>
#include <offload/device/cuda_calls.h>
#include <offload/error.h>

namespace offload {

namespace {

void* map_memory(std::uint64_t bytes, const char* purpose) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    throw Error("no " + format_bytes(bytes) + " of host memory for " + purpose + ": " + std::strerror(errno) +
                "; free some, or lower the budget");
  }
  madvise(data, bytes, MADV_HUGEPAGE); // fewer page faults and lookups of addresses; not a promise
  return data;
}

} // namespace

DeviceMemory::DeviceMemory(int device, std::uint64_t bytes, const char* purpose) : device_(device), bytes_(bytes) {
  if (bytes == 0) {
    return;
  }
  if (device_ < 0) {
    data_ = static_cast<std::byte*>(map_memory(bytes, purpose));
    record_taken(kHost, data_, bytes);
    return;
  }
  void* data = nullptr;
  cudaError_t code = cudaMalloc(&data, bytes);
  if (code != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    c10::cuda::CUDACachingAllocator::emptyCache(); // blocks that tensors have given back, and nobody uses
    code = cudaMalloc(&data, bytes);
  }
  if (code != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    throw Error("no " + format_bytes(bytes) + " of device memory for " + purpose + ": " + cudaGetErrorString(code) +
                "; lower vram_budget to what is free");
  }
  data_ = static_cast<std::byte*>(data);
  record_taken(device_, data_, bytes);
}

DeviceMemory::~DeviceMemory() {
  if (!data_) {
    return;
  }
  record_given_back(device_, data_);
  if (device_ < 0) {
    munmap(data_, bytes_);
  } else {
    static_cast<void>(cudaFree(data_)); // fails when the driver is gone, and then there is nothing to free
  }
}

DeviceMemory::DeviceMemory(DeviceMemory&& other) noexcept
    : device_(other.device_), data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

bool DeviceMemory::contains(const void* address) const {
  const auto* byte = static_cast<const std::byte*>(address);
  return data_ && byte >= data_ && byte < data_ + bytes_;
}

void DeviceMemory::upload(std::uint64_t offset, const void* src, std::uint64_t bytes) {
  if (bytes == 0) {
    return;
  }
  if (device_ < 0) {
    std::memcpy(data_ + offset, src, bytes);
  } else {
    check_cuda(cudaMemcpy(data_ + offset, src, bytes, cudaMemcpyHostToDevice), "cudaMemcpy to the device");
    // From memory that is not page-locked the last bytes may still be under way, and lanes do not wait for this stream.
    check_cuda(cudaStreamSynchronize(cudaStreamLegacy), "cudaMemcpy to the device");
  }
}

void DeviceMemory::download(std::uint64_t offset, void* dst, std::uint64_t bytes) const {
  if (device_ < 0) {
    std::memcpy(dst, data_ + offset, bytes);
    return;
  }
  const OwnStream stream; // on which no call computes
  check_cuda(cudaMemcpyAsync(dst, data_ + offset, bytes, cudaMemcpyDeviceToHost, stream.get()), "cudaMemcpyAsync");
  check_cuda(cudaStreamSynchronize(stream.get()), "cudaMemcpyAsync from the device");
}

HostMemory::HostMemory(std::uint64_t bytes) : bytes_(bytes) {
  if (bytes > 0) {
    data_ = static_cast<std::byte*>(map_memory(bytes, "weights"));
    record_taken(kHost, data_, bytes);
  }
}

HostMemory::~HostMemory() {
  unpin();
  if (data_) {
    record_given_back(kHost, data_);
    munmap(data_, bytes_);
  }
}

HostMemory::HostMemory(HostMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      pinned_(std::exchange(other.pinned_, 0)) {}

HostMemory& HostMemory::operator=(HostMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(pinned_, other.pinned_);
  return *this;
}

void HostMemory::pin(std::uint64_t bytes) {
  if (bytes == 0) {
    return;
  }
  const cudaError_t code = cudaHostRegister(data_, bytes, cudaHostRegisterDefault);
  if (code != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    throw Error("page-locking " + format_bytes(bytes) + " of host memory failed: " + cudaGetErrorString(code) +
                "; lower pinned_budget");
  }
  pinned_ = bytes;
}

void HostMemory::unpin() {
  if (std::exchange(pinned_, 0) > 0) {
    static_cast<void>(cudaHostUnregister(data_)); // fails when the driver is gone, and the lock with it
  }
}

void HostMemory::discard(std::byte* begin, std::uint64_t bytes) {
  const std::uint64_t first = align_up(static_cast<std::uint64_t>(begin - data_), kPageBytes);
  const std::uint64_t last = static_cast<std::uint64_t>(begin - data_) + bytes;
  if (first + kPageBytes <= last) {
    madvise(data_ + first, (last - first) / kPageBytes * kPageBytes, MADV_DONTNEED);
  }
}

} // namespace offload
