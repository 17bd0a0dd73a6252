#include <offload/measure.h>
#include <offload/runtime/outside_bytes.h>

#include <ATen/core/grad_mode.h>
#include <ATen/cuda/CUDAContextLight.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randn.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <sstream>
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

namespace offload {

namespace {

using Clock = std::chrono::steady_clock;

double median_us(int runs, const std::function<void()>& work, const std::function<void()>& synchronize) {
  std::vector<double> times;
  work(); // kernels are loaded and handles made on first use
  for (int i = 0; i < runs; ++i) {
    synchronize();
    const auto begin = Clock::now();
    work();
    synchronize();
    times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - begin).count());
  }
  std::nth_element(times.begin(), times.begin() + runs / 2, times.end());
  return times[runs / 2];
}

double flops_per_us(c10::Device device, at::ScalarType dtype, std::int64_t size,
                    const std::function<void()>& synchronize) {
  const at::Tensor a = at::randn({size, size}, at::TensorOptions(device)).to(dtype);
  const at::Tensor b = at::randn({size, size}, at::TensorOptions(device)).to(dtype);
  const double us = median_us(3, [&] { static_cast<void>(at::linear(a, b)); }, synchronize);
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
  const double us = median_us(
      3,
      [&] {
        std::vector<std::jthread> workers;
        for (int i = 0; i < threads; ++i) {
          workers.push_back(start_thread<std::jthread>("measuring this host", [=, src = from.data() + i * part] {
            for (std::uint64_t done = 0; done < part; done += kPiece) {
              std::memcpy(window + i * own + done % own, src + done, kPiece);
            }
          }));
        }
      },
      [] {});
  return static_cast<double>(part * threads) / us;
}

MachineProfile measure_here(c10::Device device) {
  const at::NoGradGuard no_grad;
  MachineProfile profile;
  constexpr std::uint64_t kLarge = 64_MiB;
  constexpr std::uint64_t kSmall = 1_MiB;
  HostMemory pinned(kLarge);
  std::memset(pinned.data(), 2, kLarge);
  {
    HostMemory ordinary(device.is_cuda() ? 512_MiB : kLarge); // on a GPU's host more than its caches hold
    std::memset(ordinary.data(), 1, ordinary.bytes());
    profile.host_copy_bytes_per_us = host_copy_bytes_per_us(ordinary, pinned.data());
  }

  std::function<void()> synchronize = [] {};
  std::function<void(std::byte*, std::uint64_t)> copy;
  std::unique_ptr<Link> link;
  std::optional<c10::cuda::CUDAGuard> guard;
  if (device.is_cuda()) {
    guard.emplace(device);
    pinned.pin(kLarge);
    synchronize = [device] { c10::cuda::getCurrentCUDAStream(device.index()).synchronize(); };
    copy = [&, device](std::byte* dst, std::uint64_t bytes) {
      check_cuda(cudaMemcpyAsync(dst, pinned.data(), bytes, cudaMemcpyHostToDevice,
                                 c10::cuda::getCurrentCUDAStream(device.index()).stream()),
                 "a copy that is timed");
    };
    profile.name = at::cuda::getCurrentDeviceProperties()->name;
  } else {
    link = make_host_link();
    copy = [&](std::byte* dst, std::uint64_t bytes) {
      link->copy(dst, pinned.data(), bytes);
      link->synchronize(*link->record_arrived());
    };
    profile.name = processor_name();
  }
  DeviceMemory memory(device.is_cuda() ? device.index() : -1, kLarge, "measuring the link");
  // Several in a row, as streaming does: what a copy costs beyond its bytes is then visible.
  constexpr int kRow = 8;
  const auto row_us = [&](std::uint64_t bytes) {
    return median_us(
               5,
               [&] {
                 for (int i = 0; i < kRow; ++i) {
                   copy(memory.data(), bytes);
                 }
               },
               synchronize) /
           kRow;
  };
  const double large_us = row_us(kLarge);
  const double small_us = row_us(kSmall);
  profile.link_bytes_per_us = static_cast<double>(kLarge) / large_us;
  profile.copy_overhead_us = std::max(0.1, small_us - static_cast<double>(kSmall) / profile.link_bytes_per_us);

  const bool cuda = device.is_cuda();
  profile.fp64_flops_per_us = flops_per_us(device, at::kDouble, cuda ? 2048 : 256, synchronize);
  profile.fp32_flops_per_us = flops_per_us(device, at::kFloat, cuda ? 4096 : 512, synchronize);
  profile.half_flops_per_us = flops_per_us(device, at::kBFloat16, cuda ? 4096 : 512, synchronize);
  const std::int64_t wide = cuda ? 8192 : 2048;
  const auto floats = at::TensorOptions(device).dtype(at::kFloat);
  const at::Tensor matrix = at::randn({wide, wide}, floats);
  const at::Tensor row = at::randn({1, wide}, floats);
  const double read_us = median_us(5, [&] { static_cast<void>(at::linear(row, matrix)); }, synchronize);
  profile.memory_bytes_per_us = static_cast<double>(matrix.nbytes()) / read_us;
  const at::Tensor little = at::randn({8, 8}, floats);
  constexpr int kNodes = 64;
  profile.node_overhead_us = median_us(
                                 5,
                                 [&] {
                                   for (int i = 0; i < kNodes; ++i) {
                                     static_cast<void>(at::linear(little, little));
                                   }
                                 },
                                 synchronize) /
                             kNodes;
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
  } catch (const std::exception&) { // whoever finds the device full will say so
    return;
  }
  prepared.insert(device.index());
}

namespace {

/// What of the driver's figure is known: PyTorch's share, and that of modules of this process.
std::uint64_t known_bytes(c10::Device device) {
  const auto reserved =
      c10::cuda::CUDACachingAllocator::getDeviceStats(device.index()).reserved_bytes[0].current; // of all sizes
  return static_cast<std::uint64_t>(reserved) + taken_bytes(device.index());
}

} // namespace

std::uint64_t outside_bytes(c10::Device device) {
  if (device.is_cpu()) {
    return 0;
  }
  try {
    const c10::cuda::CUDAGuard guard(device);
    std::uint64_t known = known_bytes(device);
    std::uint64_t used = 0;
    for (int tries = 0; tries < 4; ++tries) { // until nobody has taken any or given it back in between
      std::size_t free = 0;
      std::size_t total = 0;
      if (cudaMemGetInfo(&free, &total) != cudaSuccess) {
        static_cast<void>(cudaGetLastError());
        return 0;
      }
      used = total - free;
      const std::uint64_t before = std::exchange(known, known_bytes(device));
      if (before == known) {
        break;
      }
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

namespace {

constexpr double kUnknownFileRate = 1e3; // bytes per microsecond

/// Of this process and this thread: threads may measure at once.
std::string draft_of(const std::string& path) {
  static std::atomic<int> drafts = 0;
  return path + "." + std::to_string(getpid()) + "." + std::to_string(drafts++);
}

} // namespace

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
    std::filesystem::remove(path, ignored);
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
      fastest = std::max(fastest, static_cast<double>(kBytes) /
                                      std::chrono::duration<double, std::micro>(Clock::now() - begin).count());
    }
    return fastest;
  } catch (const Error&) {
    return kUnknownFileRate;
  }
}

namespace {

namespace fs = std::filesystem;

/// Of this user alone; none where the environment names no place for it. As the XDG Base Directory Specification has
/// it, a path that is not absolute is none.
std::optional<fs::path> cache_folder() {
  const char* named = std::getenv("XDG_CACHE_HOME");
  fs::path base = named ? named : "";
  if (!base.is_absolute()) {
    const char* home = std::getenv("HOME");
    base = fs::path(home ? home : "") / ".cache";
  }
  if (!base.is_absolute()) {
    return std::nullopt;
  }
  std::error_code ignored;
  fs::create_directories(base, ignored);
  fs::path folder = base / "torch-offload";
  static_cast<void>(mkdir(folder.c_str(), S_IRWXU)); // it may be there, or can not be: then nothing is kept
  return folder;
}

} // namespace

MachineProfile machine_profile(c10::Device device) {
  const std::optional<fs::path> folder = cache_folder();
  if (!folder) {
    MachineProfile profile = measure_machine(device);
    profile.file_bytes_per_us = kUnknownFileRate;
    return profile;
  }
  std::string name = device.is_cuda() ? at::cuda::getDeviceProperties(device.index())->name : processor_name();
  std::replace_if(name.begin(), name.end(), [](unsigned char c) { return !std::isalnum(c); }, '-');
  const fs::path file = *folder / (name + ".json");
  if (std::ifstream stored(file); stored) {
    std::stringstream text;
    text << stored.rdbuf();
    try {
      return profile_from_json(text.str());
    } catch (const InputError&) { // of another version, or damaged: measured anew
    }
  }
  MachineProfile profile = measure_machine(device);
  profile.file_bytes_per_us = measure_file_reads(folder->string());
  const fs::path draft = draft_of(file.string());
  if (std::ofstream(draft) << to_json(profile) << '\n') {
    std::error_code ignored;
    fs::rename(draft, file, ignored);
  }
  return profile;
}

} // namespace offload
