#pragma once

#include <c10/core/Storage.h>

#include <memory>
#include <mutex>
#include <vector>

#include <offload/device/lanes.h>
#include <offload/device/memory.h>
#include <offload/feed/host_fill.h>
#include <offload/io/file_reader.h>
#include <offload/plan/simulate.h>
#include <offload/runtime/lender.h>
#include <offload/runtime/model.h>

namespace offload {

struct Stats;

/// The weights of one module on the move: host memory, device slab, link, streamer, lanes. It executes a residency that
/// the planner has chosen.
///
/// place() and clear() come when no call runs; placed(), streamer() and owns() in calls, or when none runs. The rest
/// may be called from any thread at any time.
class Engine {
 public:
  struct Config {
    std::shared_ptr<LaneGate> gate;      ///< that calls come through
    std::vector<c10::Storage> storages;  ///< by weight, where the module has it; null for those in `host` or `file`
    std::shared_ptr<HostMemory> host;    ///< the bytes of weights
    std::shared_ptr<const File> file;    ///< null when nothing comes from one
    std::shared_ptr<const File> mapped;  ///< the same where it is read through its mapping, else null
    std::vector<HostFill::Part> to_fill; ///< of `host`, what comes from `file`; the rest is there
    std::function<void(std::uint64_t)> on_progress; ///< see HostFill
    HostMemory staging;                   ///< page-locked; empty when all of `host` is, or when the device is the host
    std::shared_ptr<WeightLender> lender; ///< that the placeholders of the module name
  };

  /// `model` outlives this. Weights of 0 bytes are none of its business.
  Engine(const Model& model, Config config);
  ~Engine();

  /// Makes the weights of `residency` resident and gives the others a ring. What was placed before is freed first,
  /// except where it is the same, or, on the host, takes as much memory: then what stays is not brought again. Throws
  /// Error when the device has not so much memory; nothing is placed then.
  void place(const Residency& residency, const Placeholders& known);

  /// Frees what was placed.
  void clear();

  bool placed() const { return streaming_ != nullptr; }
  Streamer& streamer() { return *streaming_->streamer; }
  WeightLender& lender() { return *config_.lender; }
  Lanes& lanes() { return *lanes_; }

  /// True for memory that belongs to weights where they are computed with.
  bool owns(const void* address) const;

  /// Throws ArchiveError when the file that weights are still read from has changed. To be called before what is placed
  /// is given up: what replaces it could not be read then.
  void check_file() const;

  /// Reads again into host memory what could not be read, where that has been reported. Each call does so once.
  void retry() const;

  /// Copies a weight to host memory of its size, from where it lies there or on the file. Throws ArchiveError when it
  /// can not be read.
  void copy_to_host(WeightId weight, std::byte* to) const;

  /// The same from where it is resident. False when it is not, or lies in host memory as well. Not while place() or
  /// clear() are at work.
  bool copy_resident(WeightId weight, std::byte* to) const;

  /// What resident weights and the ring take, in the units that the device gives out. On the host, resident weights
  /// that are used where they lie count, too.
  std::uint64_t placed_bytes() const { return placed_bytes_; }

  /// Adds what is counted here.
  void report(Stats& stats) const;

 private:
  StreamerCounts counts() const;
  std::unique_ptr<Store> make_store(std::byte* ring);
  void stop_streaming();
  std::uint64_t bytes(WeightId weight) const { return model_.weight(weight).bytes; }
  const Source& source(WeightId weight) const { return model_.weight(weight).source; }
  bool in_file(WeightId weight) const { return source(weight).kind == Source::Kind::file; }
  bool stays_on_host(WeightId weight) const { return model_.device.is_cpu() && !in_file(weight); }
  const std::byte* host_bytes(WeightId weight) const; ///< of one that does not lie in the file
  const std::byte* await_host_bytes(WeightId weight) const;
  void upload(WeightId weight, std::uint64_t offset);

  /// By weight, where it stays in the slab; kNowhere for those that do not, as those that are used where they lie.
  std::vector<std::uint64_t> places_of(const Residency& residency) const;
  static constexpr std::uint64_t kNowhere = ~std::uint64_t{0};
  void move_within_slab(const std::vector<std::uint64_t>& from, const std::vector<std::uint64_t>& to);
  WeightLender::Bytes bytes_on_host(WeightId weight) const;
  WeightLender::Bytes locate(WeightId weight) const;

  /// What leases of one placing need: it stays until the last of them has ended, though others are placed meanwhile.
  struct Streaming {
    std::shared_ptr<DeviceMemory> slab;
    std::unique_ptr<Store> store;
    std::unique_ptr<Streamer> streamer;
    std::uint64_t bytes_resident = 0;
  };

  const Model& model_;
  const Config config_;
  std::unique_ptr<HostFill> fill_; // null when all was there from the beginning
  std::unique_ptr<Lanes> lanes_;
  std::unique_ptr<Link> link_;
  std::shared_ptr<FileReader> reader_; // null when nothing lies in the file
  std::shared_ptr<DeviceMemory> slab_; // resident weights, then the ring; null when there is none
  std::uint64_t placed_bytes_ = 0;
  Residency placed_;         // as they lie there, where there is a slab
  mutable std::mutex mutex_; // what follows, for those who ask while it is exchanged
  std::shared_ptr<Streaming> streaming_;
  StreamerCounts before_; // of streamers that are gone; bytes_used: all that has been brought
};

} // namespace offload
