#pragma once

// What tests of pools share.

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>

#include <offload/pool.h>

#include "modules.h"

namespace offload::test {

inline const std::uint64_t kScale = kDevice.is_cuda() ? 64 : 1; // there must be more than calls take
inline const int kPerModule = static_cast<int>(6 * kScale);     // of each module
inline const std::uint64_t kModuleBytes = 6 * kScale * kWeightBytes;

/// A module of a pool, and the same wholly on the device.
struct Pooled {
  Pooled(const torch::jit::Module& module, const Options& options)
      : reference(module.deepcopy(), kDevice), offloaded(wrap(module.deepcopy(), options)) {}

  void expect_same(std::int64_t size = 3) {
    const at::Tensor x = rows(size);
    const c10::IValue output = offloaded.forward({x});
    const std::lock_guard lock(mutex); // a reference is one thread's
    EXPECT_EQ(tools::first_difference(output, reference.run("forward", {x})), "");
  }

  std::mutex mutex;
  Reference reference;
  Module offloaded;
};

class PoolTest : public testing::Test {
 protected:
  PoolTest() { at::set_num_threads(1); } // products round by it

  /// Room for so many sixths of a module beside a ring and calls.
  static std::uint64_t room_for(std::uint64_t sixths) {
    return sixths * kScale * kWeightBytes + (kDevice.is_cuda() ? 96_MiB : 0);
  }

  static std::shared_ptr<Pool> make_pool(std::uint64_t vram) {
    PoolOptions options;
    options.device = kDevice;
    options.vram_budget = vram;
    options.concurrency = 4;
    return std::make_shared<Pool>(options);
  }

  static Options in(const std::shared_ptr<Pool>& pool) {
    Options options;
    options.pool = pool;
    return options;
  }

  /// Waits for what the pool does beside calls.
  static bool comes_true(const std::function<bool()>& condition) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (std::chrono::steady_clock::now() < end) {
      if (condition()) {
        return true;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return false;
  }

  /// What a test that fails says of it.
  static std::string told(const Pool& pool) {
    std::ostringstream text;
    for (const PoolEntry& entry : pool.entries()) {
      text << entry.calls << " calls, " << entry.resident_bytes << " of " << entry.weight_bytes << " resident, "
           << entry.problem << "\n";
    }
    text << pool.stats();
    return text.str();
  }

  static std::uint64_t resident(const Pool& pool) {
    std::uint64_t bytes = 0;
    for (const PoolEntry& entry : pool.entries()) {
      bytes += entry.resident_bytes;
    }
    return bytes;
  }

  /// Unless the pool says so, calls have nothing to do with each other.
  static void call(Pooled& module, int times) {
    for (int i = 0; i < times; ++i) {
      module.expect_same();
    }
  }
};

} // namespace offload::test
