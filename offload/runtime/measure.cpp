#include <offload/measure.h>
#include <offload/runtime/outside_bytes.h>

#include <ATen/core/grad_mode.h>
#include <ATen/cuda/CUDAContextLight.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randn.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/StringUtil.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <torch/headeronly/version.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include <offload/bytes.h>
#include <offload/core/promises.h>
#include <offload/core/start_thread.h>
#include <offload/device/call_thread.h>
#include <offload/device/cuda_calls.h>
#include <offload/device/host_link.h>
#include <offload/device/lanes.h>
#include <offload/device/memory.h>
#include <offload/error.h>
#include <offload/feed/stores.h>
#include <offload/io/file_reader.h>
#include <offload/tensor/plain_modes.h>
#include <offload/version.h>

namespace offload {

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr double kUnknownFileRate = 1e3; // bytes per microsecond

double us_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
}

/// What `work` takes where it is done so often in a row.
double median_us(int runs, int in_a_row, const std::function<void()>& synchronize, const std::function<void()>& work) {
  const auto row = [&] {
    for (int i = 0; i < in_a_row; ++i) {
      work();
    }
  };
  std::vector<double> times;
  row(); // kernels are loaded and handles made on first use
  for (int i = 0; i < runs; ++i) {
    synchronize();
    const auto begin = Clock::now();
    row();
    synchronize();
    times.push_back(us_since(begin));
  }
  std::nth_element(times.begin(), times.begin() + runs / 2, times.end());
  return times[runs / 2] / in_a_row;
}

double flops_per_us(c10::Device device, at::ScalarType dtype, std::int64_t size,
                    const std::function<void()>& synchronize) {
  const at::Tensor a = at::randn({size, size}, at::TensorOptions(device)).to(dtype);
  const at::Tensor b = at::randn({size, size}, at::TensorOptions(device)).to(dtype);
  const double us = median_us(3, 1, synchronize, [&] { static_cast<void>(at::linear(a, b)); });
  return 2.0 * static_cast<double>(size * size * size) / us;
}

std::string processor_name() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (line.starts_with("model name")) {
      return line.substr(line.find(':') + 2) + ", " + std::to_string(std::thread::hardware_concurrency()) + " threads";
    }
  }
  return "this host";
}

/// Bytes that the threads of a staged store bring from ordinary memory into buffers of `window` bytes, over and over.
double host_copy_bytes_per_us(const HostMemory& from, std::byte* window) {
  const int threads = staging_threads();
  constexpr std::uint64_t kPiece = 128_KiB;
  const std::uint64_t own = kStagingBytes / threads / kPiece * kPiece;
  const std::uint64_t part = from.bytes() / threads / own * own;
  const auto nothing_to_wait_for = [] {};
  const double us = median_us(3, 1, nothing_to_wait_for, [&] {
    std::vector<std::jthread> workers;
    for (int i = 0; i < threads; ++i) {
      workers.push_back(start_thread<std::jthread>("measuring this host", [=, src = from.data() + i * part] {
        for (std::uint64_t done = 0; done < part; done += kPiece) {
          std::memcpy(window + i * own + done % own, src + done, kPiece);
        }
      }));
    }
  });
  return static_cast<double>(part * threads) / us;
}

MachineProfile measure_here(c10::Device device) {
  const at::NoGradGuard no_grad;
  const c10::DeviceGuard guard(device);
  const bool cuda = device.is_cuda();
  MachineProfile profile;
  profile.name = cuda ? at::cuda::getCurrentDeviceProperties()->name : processor_name();
  profile.device_memory_bytes = cuda ? at::cuda::getCurrentDeviceProperties()->totalGlobalMem : 0;
  constexpr std::uint64_t kLarge = 64_MiB;
  constexpr std::uint64_t kSmall = 1_MiB;
  HostMemory pinned(kLarge);
  std::memset(pinned.data(), 2, kLarge);
  {
    HostMemory ordinary(cuda ? 512_MiB : kLarge); // on a GPU's host more than its caches hold
    std::memset(ordinary.data(), 1, ordinary.bytes());
    profile.host_copy_bytes_per_us = host_copy_bytes_per_us(ordinary, pinned.data());
  }

  DeviceMemory memory(cuda ? device.index() : -1, kLarge, "measuring the link");
  pinned.pin(cuda ? kLarge : 0);
  const std::unique_ptr<Link> link = cuda ? nullptr : make_host_link();
  const auto stream = [&] { return c10::cuda::getCurrentCUDAStream(device.index()); };
  const auto synchronize = [&] {
    if (cuda) {
      stream().synchronize();
    }
  };
  const auto copy = [&](std::uint64_t bytes) {
    if (cuda) {
      check_cuda(cudaMemcpyAsync(memory.data(), pinned.data(), bytes, cudaMemcpyHostToDevice, stream().stream()),
                 "a copy that is timed");
    } else {
      link->copy(memory.data(), pinned.data(), bytes);
      link->synchronize(*link->record_arrived());
    }
  };
  // In a row, as streaming does: what a copy costs beyond its bytes is then visible.
  const double large_us = median_us(5, 8, synchronize, [&] { copy(kLarge); });
  const double small_us = median_us(5, 8, synchronize, [&] { copy(kSmall); });
  profile.link_bytes_per_us = static_cast<double>(kLarge) / large_us;
  profile.copy_overhead_us = std::max(0.1, small_us - static_cast<double>(kSmall) / profile.link_bytes_per_us);

  profile.fp64_flops_per_us = flops_per_us(device, at::kDouble, cuda ? 2048 : 256, synchronize);
  profile.fp32_flops_per_us = flops_per_us(device, at::kFloat, cuda ? 4096 : 512, synchronize);
  profile.half_flops_per_us = flops_per_us(device, at::kBFloat16, cuda ? 4096 : 512, synchronize);
  const std::int64_t wide = cuda ? 8192 : 2048;
  const auto floats = at::TensorOptions(device).dtype(at::kFloat);
  const at::Tensor matrix = at::randn({wide, wide}, floats);
  const at::Tensor row = at::randn({1, wide}, floats);
  const double read_us = median_us(5, 1, synchronize, [&] { static_cast<void>(at::linear(row, matrix)); });
  profile.memory_bytes_per_us = static_cast<double>(matrix.nbytes()) / read_us;
  const at::Tensor little = at::randn({8, 8}, floats);
  profile.node_overhead_us = median_us(5, 64, synchronize, [&] { static_cast<void>(at::linear(little, little)); });
  return profile;
}

/// Runs `work` on memory that is given back at once, and on a thread that is gone afterwards: nothing is left in
/// PyTorch's cache, and the thread's handles are there for others.
void on_memory_of_its_own(c10::Device device, const std::function<void()>& work) {
  if (device.is_cpu()) {
    work();
    return;
  }
  const auto lanes = make_lanes(device, 1, std::make_shared<LaneGate>(1));
  CallThread().run(device, [&] {
    const auto call = lanes->enter(0, Lanes::Overflow::stop, /*first=*/false);
    work();
  });
}

/// What of the driver's figure is known: PyTorch's share, and that of modules of this process.
std::uint64_t known_bytes(c10::Device device) {
  const auto reserved =
      c10::cuda::CUDACachingAllocator::getDeviceStats(device.index()).reserved_bytes[0].current; // of all sizes
  return static_cast<std::uint64_t>(reserved) + taken_bytes(device.index());
}

/// Of this process and this thread: threads may measure at once.
std::string draft_of(const std::string& path) {
  static std::atomic<int> drafts = 0;
  return path + "." + std::to_string(getpid()) + "." + std::to_string(drafts++);
}

/// Of this user alone; empty where the environment names no place for it. As the XDG Base Directory Specification has
/// it, a path that is not absolute is none.
fs::path cache_folder() {
  const char* named = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  fs::path base = named ? named : "";
  if (!base.is_absolute()) {
    base = fs::path(home ? home : "") / ".cache";
  }
  if (!base.is_absolute()) {
    return {};
  }
  std::error_code ignored;
  fs::create_directories(base, ignored);
  fs::path folder = base / "torch-offload";
  static_cast<void>(mkdir(folder.c_str(), S_IRWXU)); // it may be there, or can not be: then nothing is kept
  return folder;
}

/// What a measured profile holds for: a GPU in its slot, whose link may be narrower than that of another of the same
/// name, with a driver and libraries that multiply matrices as fast as they do.
std::string describe_measured(c10::Device device) {
  std::string text = processor_name();
  if (device.is_cuda()) {
    const cudaDeviceProp* const gpu = at::cuda::getDeviceProperties(device.index());
    int driver = 0;
    check_cuda(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
    text = c10::str(gpu->name, " at ", gpu->pciDomainID, ":", gpu->pciBusID, ":", gpu->pciDeviceID, " driver ", driver);
  }
  return c10::str(text, " torch ", TORCH_VERSION_MAJOR, ".", TORCH_VERSION_MINOR, ".", TORCH_VERSION_PATCH, " offload ",
                  OFFLOAD_VERSION_MAJOR, ".", OFFLOAD_VERSION_MINOR, ".", OFFLOAD_VERSION_PATCH);
}

} // namespace

void prepare_device(c10::Device device) {
  static std::mutex mutex;
  static std::set<c10::DeviceIndex> prepared;
  const std::lock_guard lock(mutex);
  if (!device.is_cuda() || prepared.count(device.index()) > 0) {
    return;
  }
  try {
    on_memory_of_its_own(device, [&] {
      const at::Tensor little = at::randn({8, 8}, at::TensorOptions(device));
      static_cast<void>(at::linear(little, little));
    });
    prepared.insert(device.index());
  } catch (const std::exception&) { // whoever finds the device full will say so
  }
}

std::uint64_t outside_bytes(c10::Device device) {
  if (device.is_cpu()) {
    return 0;
  }
  try {
    const c10::DeviceGuard guard(device);
    std::uint64_t known = known_bytes(device);
    std::uint64_t before = ~known;
    std::uint64_t used = 0;
    for (int tries = 0; tries < 4 && known != before;
         ++tries) { // until nobody has taken any or given it back meanwhile
      std::size_t free = 0;
      std::size_t total = 0;
      if (cudaMemGetInfo(&free, &total) != cudaSuccess) {
        static_cast<void>(cudaGetLastError());
        return 0;
      }
      used = total - free;
      before = std::exchange(known, known_bytes(device));
    }
    return used - std::min(used, known);
  } catch (const c10::Error&) { // allocators that others have put in the place of PyTorch's may keep no account
    return 0;
  }
}

MachineProfile measure_machine(c10::Device device) {
  const PlainModes plain;
  MachineProfile profile;
  on_memory_of_its_own(device, [&] { profile = measure_here(device); });
  return profile;
}

double measure_file_reads(const std::string& folder) {
  constexpr std::uint64_t kBytes = 64_MiB;
  const std::string path = draft_of(folder + "/reads");
  std::ofstream out(path, std::ios::binary);
  const std::vector<char> bytes(kBytes, 1);
  const bool written = !!out.write(bytes.data(), static_cast<std::streamsize>(bytes.size())).flush();
  out.close();
  try {
    const auto file = std::make_shared<const File>(path);
    std::error_code ignored;
    fs::remove(path, ignored);
    if (!written || fdatasync(file->descriptor()) != 0) {
      return kUnknownFileRate;
    }
    FileReader reader(file, make_disk(file, FileReader::kReadsInFlight));
    HostMemory memory(kBytes);
    double fastest = 0;
    for (int i = 0; i < 3; ++i) { // the first one finds memory that was never touched, and a disk that still writes
      posix_fadvise(file->descriptor(), 0, 0, POSIX_FADV_DONTNEED);
      const auto begin = Clock::now();
      reader.read_all(memory.data(), 0, kBytes);
      fastest = std::max(fastest, static_cast<double>(kBytes) / us_since(begin));
    }
    return fastest;
  } catch (const Error&) {
    return kUnknownFileRate;
  }
}

MachineProfile machine_profile(c10::Device device) {
  const fs::path folder = cache_folder();
  if (folder.empty()) {
    MachineProfile profile = measure_machine(device);
    profile.file_bytes_per_us = kUnknownFileRate;
    return profile;
  }
  std::string name = describe_measured(device);
  std::replace_if(name.begin(), name.end(), [](unsigned char c) { return !std::isalnum(c); }, '-');
  const fs::path file = folder / (name + ".json");
  if (std::ifstream stored(file); stored) {
    const std::string text(std::istreambuf_iterator<char>(stored), {});
    try {
      return profile_from_json(text);
    } catch (const InputError&) { // of another version, or damaged: measured anew
    }
  }
  MachineProfile profile = measure_machine(device);
  profile.file_bytes_per_us = measure_file_reads(folder.string());
  const fs::path draft = draft_of(file.string());
  if (std::ofstream(draft) << to_json(profile) << '\n') {
    std::error_code ignored;
    fs::rename(draft, file, ignored);
  }
  return profile;
}

} // namespace offload
