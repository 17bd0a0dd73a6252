#pragma once

#include <c10/core/Device.h>

#include <memory>
#include <mutex>
#include <vector>

#include <offload/core/weight_table.h>
#include <offload/device/lanes.h>
#include <offload/device/memory.h>
#include <offload/feed/stores.h>
#include <offload/io/file.h>
#include <offload/ring/streamer.h>

namespace offload {

struct Stats;

/// Device memory that weights are streamed through.
struct RingMemory {
  std::shared_ptr<DeviceMemory> owner; ///< kept by leases
  std::byte* data = nullptr;
  std::uint64_t bytes = 0;
};

/// What calls of one or several modules have in common on a device: lanes, the link, and a ring with a streamer over
/// it, for which the weights of all modules are one table.
///
/// join(), leave(), start() and stop() come when no call runs, one at a time; streamer() and started() in calls, or
/// then. The rest may be called from any thread at any time.
class Transport {
 public:
  /// A module, as far as the ring knows it.
  struct Member {
    WeightTablePtr weights;
    HostPlaces places;                        ///< by weight
    std::shared_ptr<const HostSource> source; ///< that they name
    std::shared_ptr<const File> file;         ///< that weights are read from; null when there is none
  };

  /// `staging_bytes` of page-locked buffers; 0 when no weight needs them, or when the device is the host. Throws Error
  /// when the host has not so much, and when page-locking is refused.
  Transport(c10::Device device, int lanes, std::uint64_t staging_bytes);
  ~Transport() { stop(); }
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;

  /// From the next start() on. In the ring, the module's weights have the ids from the returned one on.
  WeightId join(Member member);

  /// Ends the membership of the module with this source, if it has one. Where it has been there since start(), stop()s:
  /// nothing of it is read any more.
  void leave(WeightId first, const HostSource* source);

  /// Streams through `ring` from now on.
  void start(RingMemory ring);

  /// Waits until lanes and link are done, and streams no more. Leases that somebody has kept stay what they are.
  void stop();

  bool started() const { return streaming_ != nullptr; }

  /// It keeps all that it works with.
  std::shared_ptr<Streamer> streamer() const { return {streaming_, streaming_->streamer.get()}; }

  Lanes& lanes() const { return *lanes_; }
  LaneGate& gate() const { return *gate_; }

  /// That have crossed the link.
  std::uint64_t link_bytes() const { return link_->bytes(); }

  /// Adds what is counted here.
  void report(Stats& stats) const;

 private:
  /// What leases need after stop() as well.
  struct Streaming {
    RingMemory ring;
    std::vector<std::shared_ptr<const HostSource>> sources;
    std::unique_ptr<Store> store;
    std::unique_ptr<Streamer> streamer;
  };

  WeightTablePtr all_weights() const;
  std::unique_ptr<Store> make_store(std::byte* ring) const;
  StreamerCounts counts() const;

  const c10::Device device_;
  const HostMemory staging_;
  const std::shared_ptr<LaneGate> gate_;
  const std::unique_ptr<Lanes> lanes_;
  const std::unique_ptr<Link> link_;
  std::vector<std::pair<WeightId, Member>> members_; // by the id of their first weight
  mutable std::mutex mutex_;                         // what follows, for those who ask while it is exchanged
  std::shared_ptr<Streaming> streaming_;
  StreamerCounts before_; // of streamers that are gone; bytes_used: all that has been brought
};

} // namespace offload
