#include <offload/ring/gather.h>

#include <algorithm>

namespace offload {

void keep_latest(std::vector<FencePtr>& readers, FencePtr reader) {
  const auto same_lane = std::find_if(readers.begin(), readers.end(),
                                      [&](const FencePtr& other) { return other->lane() == reader->lane(); });
  if (same_lane == readers.end()) {
    readers.push_back(std::move(reader));
  } else {
    *same_lane = std::move(reader);
  }
}

void Gatherer::gather(const std::vector<Fetch>& fetches, Ring& ring, std::vector<Batch>& out) {
  std::uint64_t gathered = batch_bytes_;
  for (const Fetch& fetch : fetches) {
    if (gathered >= batch_bytes_ || fetch.bytes >= batch_bytes_) {
      out.push_back({{}, {}, std::make_shared<Arrival>()});
      gathered = 0;
    }
    Batch& batch = out.back();
    batch.fetches.push_back(fetch);
    gathered += fetch.bytes;

    std::vector<FencePtr> readers;
    ring.collect_readers(fetch.place, fetch.bytes, readers);
    ring.forget_readers(fetch.place, fetch.bytes);
    for (FencePtr& reader : readers) {
      // Copies are in order: what an earlier batch has waited for, a later one need not.
      std::uint64_t& waited = waited_[reader->lane()];
      if (reader->order() > waited) {
        waited = reader->order();
        keep_latest(batch.readers, std::move(reader));
      }
    }
  }
}

} // namespace offload
