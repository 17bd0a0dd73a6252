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

std::byte* map_memory(std::uint64_t bytes, const char* purpose) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    throw Error("no " + format_bytes(bytes) + " of host memory for " + purpose + ": " + std::strerror(errno) +
                "; free some, or lower the budget");
  }
  madvise(data, bytes, MADV_HUGEPAGE); // fewer page faults and lookups of addresses; not a promise
  record_taken(kHost, data, bytes);
  return static_cast<std::byte*>(data);
}

void unmap_memory(std::byte* data, std::uint64_t bytes) {
  record_given_back(kHost, data);
  munmap(data, bytes);
}

void unlock_pages(std::byte* data) {
  static_cast<void>(cudaHostUnregister(data)); // fails when the driver is gone, and the lock with it
}

} // namespace

DeviceMemory::DeviceMemory(int device, std::uint64_t bytes, const char* purpose) : data_(nullptr, {device, bytes}) {
  if (bytes == 0) {
    return;
  }
  if (on_host()) {
    data_.reset(map_memory(bytes, purpose));
    return;
  }
  void* data = nullptr;
  cudaError_t code = cudaMalloc(&data, bytes);
  if (!worked(code)) {
    c10::cuda::CUDACachingAllocator::emptyCache(); // blocks that tensors have given back, and nobody uses
    code = cudaMalloc(&data, bytes);
  }
  if (!worked(code)) {
    throw Error("no " + format_bytes(bytes) + " of device memory for " + purpose + ": " + cudaGetErrorString(code) +
                "; lower vram_budget to what is free");
  }
  data_.reset(static_cast<std::byte*>(data));
  record_taken(device, data, bytes);
}

void DeviceMemory::Free::operator()(std::byte* data) const noexcept {
  if (device < 0) {
    unmap_memory(data, bytes);
    return;
  }
  record_given_back(device, data);
  static_cast<void>(cudaFree(data)); // fails when the driver is gone, and then there is nothing to free
}

bool DeviceMemory::contains(const void* address) const {
  const auto* byte = static_cast<const std::byte*>(address);
  return data_ && byte >= data() && byte < data() + bytes();
}

void DeviceMemory::download(std::uint64_t offset, void* dst, std::uint64_t bytes) const {
  if (on_host()) {
    std::memcpy(dst, data() + offset, bytes);
    return;
  }
  const OwnStream stream; // on which no call computes
  check_cuda(cudaMemcpyAsync(dst, data() + offset, bytes, cudaMemcpyDeviceToHost, stream.get()), "cudaMemcpyAsync");
  check_cuda(cudaStreamSynchronize(stream.get()), "cudaMemcpyAsync from the device");
}

Uploads::Uploads(DeviceMemory& memory)
    : memory_(memory), stream_(memory.on_host() ? nullptr : std::make_unique<OwnStream>()) {}

Uploads::~Uploads() {
  if (under_way_ > 0) { // what is copied, and where to, may go now
    static_cast<void>(cudaStreamSynchronize(stream_->get()));
  }
}

void Uploads::add(std::uint64_t offset, const void* src, std::uint64_t bytes) {
  if (bytes == 0) {
    return;
  }
  if (!stream_) {
    std::memcpy(memory_.data() + offset, src, bytes);
    return;
  }
  under_way_ += bytes;
  check_cuda(cudaMemcpyAsync(memory_.data() + offset, src, bytes, cudaMemcpyHostToDevice, stream_->get()),
             "cudaMemcpyAsync to the device");
}

void Uploads::wait() {
  if (std::exchange(under_way_, 0) > 0) {
    check_cuda(cudaStreamSynchronize(stream_->get()), "cudaMemcpyAsync to the device");
  }
}

HostMemory::HostMemory(std::uint64_t bytes)
    : data_(bytes > 0 ? map_memory(bytes, "weights") : nullptr, {bytes, false}) {}

void HostMemory::Free::operator()(std::byte* data) const noexcept {
  if (pinned) {
    unlock_pages(data);
  }
  unmap_memory(data, bytes);
}

void HostMemory::pin(std::uint64_t bytes) {
  if (bytes == 0) {
    return;
  }
  const cudaError_t code = cudaHostRegister(data(), bytes, cudaHostRegisterDefault);
  if (!worked(code)) {
    throw Error("page-locking " + format_bytes(bytes) + " of host memory failed: " + cudaGetErrorString(code) +
                "; lower pinned_budget");
  }
  data_.get_deleter().pinned = true;
}

void HostMemory::unpin() {
  if (std::exchange(data_.get_deleter().pinned, false)) {
    unlock_pages(data());
  }
}

void HostMemory::discard(std::byte* begin, std::uint64_t bytes) {
  const auto offset = static_cast<std::uint64_t>(begin - data());
  const std::uint64_t first = align_up(offset, kPageBytes);
  const std::uint64_t last = offset + bytes;
  if (first + kPageBytes <= last) {
    madvise(data() + first, (last - first) / kPageBytes * kPageBytes, MADV_DONTNEED);
  }
}

} // namespace offload
