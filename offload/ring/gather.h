#pragma once

#include <vector>

#include <offload/core/batch.h>
#include <offload/ring/ring.h>

namespace offload {

/// Keeps of the readers of each channel the latest: `reader` comes after those that are there.
void keep_latest(std::vector<FencePtr>& readers, FencePtr reader);

/// Gathers fetches in batches, and says for each whom it has to wait for.
class Gatherer {
 public:
  Gatherer(std::uint64_t batch_bytes, int lanes) : batch_bytes_(batch_bytes), waited_(lanes) {}

  /// Appends `fetches` to `out` in batches of about batch_bytes(). A fetch that is large by itself travels alone, so
  /// that what is before it need not wait. The readers that `ring` remembers of their places are taken from there.
  void gather(const std::vector<Fetch>& fetches, Ring& ring, std::vector<Batch>& out);

  std::uint64_t batch_bytes() const { return batch_bytes_; }

 private:
  const std::uint64_t batch_bytes_;
  std::vector<std::uint64_t> waited_; // by channel, which is a lane: order of the latest fence that a batch waits for
};

} // namespace offload
