#include <offload/device/device_pages.h>

#include <ATen/cuda/CUDAContextLight.h>
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <bit>
#include <string>
#include <vector>

#include <offload/bytes.h>
#include <offload/core/promises.h>
#include <offload/device/cuda_calls.h>
#include <offload/device/memory.h>
#include <offload/error.h>

namespace offload {

namespace {

/// A function of the driver. It is asked for by name: nothing links the driver.
struct DriverFunction {
  const char* name;

  template <typename Function>
  operator Function*() const {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    constexpr unsigned kSince = 12000;
    check_cuda(cudaGetDriverEntryPointByVersion(name, &found, kSince, cudaEnableDefault, &result), name);
    if (!found) {
      throw Error(std::string("the CUDA driver has no ") + name +
                  ": it is too old, or the device has no virtual memory");
    }
    return reinterpret_cast<Function*>(found);
  }
};

/// What the driver has for memory behind addresses of one's own.
struct Driver {
  decltype(&cuMemAddressReserve) reserve = DriverFunction{"cuMemAddressReserve"};
  decltype(&cuMemAddressFree) free_addresses = DriverFunction{"cuMemAddressFree"};
  decltype(&cuMemCreate) create = DriverFunction{"cuMemCreate"};
  decltype(&cuMemRelease) release = DriverFunction{"cuMemRelease"};
  decltype(&cuMemMap) map = DriverFunction{"cuMemMap"};
  decltype(&cuMemUnmap) unmap = DriverFunction{"cuMemUnmap"};
  decltype(&cuMemSetAccess) set_access = DriverFunction{"cuMemSetAccess"};

  static const Driver& get() {
    static const Driver kDriver;
    return kDriver;
  }
};

class DevicePages final : public Pages {
 public:
  explicit DevicePages(int device) : device_(device), driver_(Driver::get()) {
    addresses_ = align_up(at::cuda::getDeviceProperties(device)->totalGlobalMem, kDeviceGranularity);
    if (driver_.reserve(&begin_, addresses_, kDeviceGranularity, 0, 0) != CUDA_SUCCESS) {
      throw Error("the CUDA driver has no " + format_bytes(addresses_) + " of addresses for activations");
    }
  }

  ~DevicePages() override {
    shrink(0);
    static_cast<void>(driver_.free_addresses(begin_, addresses_)); // fails when the driver is gone
  }
  DevicePages(const DevicePages&) = delete;
  DevicePages& operator=(const DevicePages&) = delete;

  std::byte* data() const override { return std::bit_cast<std::byte*>(begin_); }
  std::uint64_t addresses() const override { return addresses_; }
  std::uint64_t bytes() const override { return bounds_.back(); }

  bool grow(std::uint64_t bytes) override {
    const std::uint64_t wanted = align_up(bytes, kDeviceGranularity);
    if (wanted > addresses_) {
      return false;
    }
    const std::uint64_t before = this->bytes();
    while (this->bytes() < wanted) {
      if (!add(std::min(kPieceBytes, wanted - this->bytes()))) {
        shrink(before);
        return false;
      }
    }
    return true;
  }

  void shrink(std::uint64_t bytes) override {
    while (bounds_.size() > 1 && bounds_[bounds_.size() - 2] >= bytes) {
      const std::uint64_t end = this->bytes();
      bounds_.pop_back();
      const CUdeviceptr piece = begin_ + this->bytes();
      record_given_back(device_, std::bit_cast<const void*>(piece));
      static_cast<void>(driver_.unmap(piece, end - this->bytes())); // fails when the driver is gone
    }
  }

 private:
  static constexpr std::uint64_t kPieceBytes = 32_MiB; // what is given back at once; each costs some 60 microseconds

  bool add(std::uint64_t bytes) {
    CUmemAllocationProp properties{};
    properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location = {CU_MEM_LOCATION_TYPE_DEVICE, device_};
    CUmemGenericAllocationHandle piece = 0;
    if (driver_.create(&piece, bytes, &properties, 0) != CUDA_SUCCESS) {
      return false;
    }
    const CUdeviceptr place = begin_ + this->bytes();
    const bool mapped = driver_.map(place, bytes, 0, piece, 0) == CUDA_SUCCESS;
    static_cast<void>(driver_.release(piece)); // it goes when it is mapped nowhere
    const CUmemAccessDesc access{properties.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    if (mapped && driver_.set_access(place, bytes, &access, 1) == CUDA_SUCCESS) {
      bounds_.push_back(this->bytes() + bytes);
      record_taken(device_, std::bit_cast<const void*>(place), bytes);
      return true;
    }
    if (mapped) {
      static_cast<void>(driver_.unmap(place, bytes));
    }
    return false;
  }

  const int device_;
  const Driver& driver_;
  CUdeviceptr begin_ = 0;
  std::uint64_t addresses_ = 0;
  std::vector<std::uint64_t> bounds_ = {0}; // where pieces begin, and the last one ends
};

} // namespace

std::unique_ptr<Pages> make_device_pages(int device) { return std::make_unique<DevicePages>(device); }

} // namespace offload
