#include <offload/ring/gather.h>

#include <algorithm>

namespace offload {

void keep_latest(std::vector<FencePtr>& readers, FencePtr reader) {
  const auto same = std::find_if(readers.begin(), readers.end(),
                                 [&](const FencePtr& other) { return other->channel() == reader->channel(); });
  if (same == readers.end()) {
    readers.push_back(std::move(reader));
  } else {
    *same = std::move(reader);
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
    ring.drop_readers(fetch.place, fetch.bytes);
    for (FencePtr& reader : readers) {
      // Copies are in order: what an earlier batch has waited for, a later one need not.
      std::uint64_t& waited = waited_[reader->channel()];
      if (reader->order() > waited) {
        waited = reader->order();
        keep_latest(batch.readers, std::move(reader));
      }
    }
  }
}

} // namespace offload
