#pragma once

#include <c10/core/Storage.h>

#include <atomic>
#include <memory>
#include <vector>

#include <offload/device/memory.h>
#include <offload/feed/host_fill.h>
#include <offload/feed/stores.h>
#include <offload/io/file_reader.h>
#include <offload/runtime/lender.h>
#include <offload/runtime/model.h>
#include <offload/runtime/transport.h>

namespace offload {

struct Stats;

/// The weights of one module: in host memory, in the file, and in slabs on the device. It executes a residency that the
/// planner has chosen; what streams goes through a transport.
///
/// place(), add(), drop_down_to() and clear() come when no call runs; placed(), stays() and owns() in calls, or when
/// none runs. The rest may be called from any thread at any time.
class Engine {
 public:
  struct Config {
    std::vector<c10::Storage> storages;  ///< by weight, where the module has it; null for those in `host` or `file`
    std::shared_ptr<HostMemory> host;    ///< the bytes of weights
    std::shared_ptr<const File> file;    ///< null when nothing comes from one
    std::shared_ptr<const File> mapped;  ///< the same where it is read through its mapping, else null
    std::vector<HostFill::Part> to_fill; ///< of `host`, what comes from `file`; the rest is there
    std::function<void(std::uint64_t)> on_progress; ///< see HostFill
    std::shared_ptr<WeightLender> lender;           ///< that the placeholders of the module name
  };

  /// `model` and `transport` outlive this. Weights of 0 bytes are none of its business.
  Engine(const Model& model, Transport& transport, Config config);
  ~Engine();

  /// Resident weights in memory of their own, and room for a ring behind them. What is placed is one slab, or several
  /// that were added to each other and have no ring.
  struct Slab {
    Residency residency;
    std::shared_ptr<DeviceMemory> memory;
    std::vector<std::uint64_t> places; ///< by weight, where it stays there; kNowhere for the others
    std::byte* ring = nullptr;
  };

  /// Makes the weights of `residency` resident, and leaves room for a ring. What was placed before is freed first,
  /// except where it is the same, or, on the host, takes as much memory: then what stays is not brought again. Nothing
  /// streams meanwhile, and the device is done with all calls. Throws Error when the device has not so much memory;
  /// nothing is placed then.
  void place(const Residency& residency, const Placeholders& known);

  /// Brings the weights of `residency` to memory of their own, beside calls, and tells `on_part` of each part. Throws
  /// what that throws.
  Slab prepare(const Residency& residency, const std::function<void(std::uint64_t bytes)>& on_part) const;

  /// Places them beside what is placed, of which they are no part.
  void add(std::vector<Slab> slabs, const Placeholders& known);

  /// Frees slabs, those that were added last first, until the others take at most `bytes`.
  void drop_down_to(std::uint64_t bytes, const Placeholders& known);

  /// Frees what was placed.
  void clear();

  /// The same, and nothing of it streams any more: the rest may end beside calls of others.
  void leave();

  bool placed() const { return !slabs_.empty(); }

  /// True for a weight that is resident.
  bool stays(WeightId weight) const;
  WeightLender& lender() { return *config_.lender; }

  /// True when all that goes to host memory has come there.
  bool is_filled() const { return !fill_ || fill_->all_there(); }

  /// What place() has left room for; it is there for as long as that.
  RingMemory ring() const { return {slabs_.back().memory, slabs_.back().ring, slabs_.back().residency.ring_bytes}; }

  /// Of its weights, in the ring.
  WeightId first_in_ring() const { return first_; }

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

  /// The same from where it is resident. False when it is not, or lies in host memory as well. Not while what is placed
  /// is altered.
  bool copy_resident(WeightId weight, std::byte* to) const;

  /// What resident weights and the ring take, in the units that the device gives out. On the host, resident weights
  /// that are used where they lie count, too.
  std::uint64_t placed_bytes() const { return placed_bytes_; }

  /// Of weights that are resident.
  std::uint64_t resident_bytes() const { return resident_bytes_; }

  /// Adds what is counted here.
  void report(Stats& stats) const;

 private:
  void begin_to_fill();
  HostPlaces host_places(const HostSource& from) const;
  std::uint64_t bytes(WeightId weight) const { return model_.weight(weight).bytes; }
  const Source& source(WeightId weight) const { return model_.weight(weight).source; }
  bool in_file(WeightId weight) const { return source(weight).kind == Source::Kind::file; }
  bool stays_on_host(WeightId weight) const { return model_.device.is_cpu() && !in_file(weight); }
  const std::byte* host_bytes(WeightId weight) const; ///< of one that does not lie in the file
  const std::byte* await_host_bytes(WeightId weight) const;
  using OnPart = std::function<void(std::uint64_t bytes)>;
  void upload(WeightId weight, Uploads& uploads, std::byte* to, std::uint64_t offset, const OnPart& on_part) const;
  std::uint64_t slab_bytes(const Residency& residency) const;
  std::uint64_t counted_bytes() const;
  void attach(const Placeholders& known);

  /// By weight, where it stays in the slab; kNowhere for those that do not, as those that are used where they lie.
  std::vector<std::uint64_t> places_of(const Residency& residency) const;
  static constexpr std::uint64_t kNowhere = ~std::uint64_t{0};
  void move_within(Slab& slab, const std::vector<std::uint64_t>& to) const;
  void exchange(const std::function<void()>& change, const Placeholders& known);
  WeightLender::Bytes bytes_on_host(WeightId weight) const;
  WeightLender::Bytes locate(WeightId weight) const;

  const Model& model_;
  Transport& transport_;
  const Config config_;
  std::unique_ptr<HostFill> fill_;     // null when all was there from the beginning
  std::shared_ptr<FileReader> reader_; // null when nothing lies in the file
  std::shared_ptr<const HostSource> source_;
  WeightId first_ = 0;      // of its weights, in the ring
  std::vector<Slab> slabs_; // none when nothing is placed
  std::atomic<std::uint64_t> placed_bytes_ = 0;
  std::atomic<std::uint64_t> resident_bytes_ = 0;
};

} // namespace offload
