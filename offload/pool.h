#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <offload/export.h>
#include <offload/module.h>
#include <offload/process.h>

namespace offload {

/// Budgets for all modules of a pool together; what each means is said in Options.
struct PoolOptions {
  std::optional<c10::Device> device;
  std::optional<std::uint64_t> vram_budget; ///< by default what is free when the pool is made, less 512 MiB
  std::optional<std::uint64_t> host_budget;
  std::optional<std::uint64_t> pinned_budget;
  int concurrency = 8; ///< the most calls in flight at once, of all modules
};

/// A module of a pool.
struct PoolEntry {
  std::string name;                 ///< of its archive, or of its class
  std::uint64_t weight_bytes = 0;   ///< of all weights that may be resident or streamed
  std::uint64_t resident_bytes = 0; ///< of them, on the device now
  std::uint64_t calls = 0;          ///< that began
  double idle_seconds = 0;          ///< since its last call, or since it was loaded
  double wake_seconds = 0; ///< that it last took from a call that found nothing resident until what pays was resident
  std::string problem;     ///< why weights could not be brought when that was last tried; empty when they could
};

class PoolManager;

/// One budget for many modules on one device: those that are loaded or wrapped with Options::pool.
///
/// Ring and memory for calls are common to all. Resident bytes go where they save most time, by how often modules have
/// been called of late (within about ten seconds) and by Options::weight; they are brought beside calls, and take no
/// more than a quarter of the link while calls stream. A module of which nothing is resident is served at once, at the
/// link's speed. Calls are admitted in the order in which they come, whatever module they are of, unless they differ in
/// priority (offload/priority.h): none waits for more than those before it and 16 that are more urgent.
///
/// Any thread may call any member at any time. A pool lives until its last module has ended and this has been
/// destroyed. From within a call of one of its modules, and from Options::progress, no other module of the pool can be
/// called, loaded or ended, and no budget set; nor may an operator wait for a call of another thread. A child of fork()
/// can use no pool of its parent.
class OFFLOAD_API Pool {
 public:
  /// Throws InputError for options that the machine contradicts.
  explicit Pool(const PoolOptions& options = {});
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  c10::Device device() const;
  std::uint64_t vram_budget() const;

  /// From now on, once the calls in flight are done. Throws BudgetError when the modules do not fit even if nothing of
  /// them is resident, and leaves all as it was.
  void set_vram_budget(std::uint64_t bytes);

  /// The modules, in the order in which they came.
  std::vector<PoolEntry> entries() const;

  /// Of all modules together, those that have ended among them: what moves, and what is on the device. `calls`,
  /// `calls_repeated`, `wait_turn_us` and what is read in place are those of the modules that are there.
  Stats stats() const;

  /// For modules that are made. Throws Error in a child of the process that made the pool.
  const std::shared_ptr<PoolManager>& manager() const;

 private:
  Process process_;
  std::shared_ptr<PoolManager> manager_;
};

} // namespace offload
