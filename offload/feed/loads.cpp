#include <offload/feed/loads.h>

#include <algorithm>
#include <utility>

#include <offload/bytes.h>

namespace offload {

namespace {

constexpr std::uint64_t kPieceBytes = 128_KiB;
constexpr std::uint64_t kFilePieceBytes = FileReader::kMostBytes;

/// The part of `place` from `done` on, of `bytes` at most.
HostPlace part_of(const HostPlace& place, std::uint64_t done, std::uint64_t bytes) {
  if (!place.in_file()) {
    return in_memory(place.memory + done, place.direct);
  }
  return {nullptr, place.offset + done, done < place.bytes ? std::min(bytes, place.bytes - done) : 0};
}

} // namespace

void LoadCutter::begin(Batch&& batch) {
  auto job = std::make_shared<Job>();
  job->copies =
      merge_neighbours(batch, host_, [&](WeightId a, WeightId b) { return host_[a].direct == host_[b].direct; });
  job->batch = std::move(batch);
  job_ = std::move(job);
}

std::shared_ptr<Load> LoadCutter::cut(std::byte* to, std::uint64_t room) {
  Job& job = *job_;
  auto load = std::make_shared<Load>();
  load->job = job_;
  load->place = next_place();
  if (const Copy& copy = job.copies[job.next]; copy.src.direct) {
    load->data = const_cast<std::byte*>(copy.src.memory);
    load->bytes = copy.bytes;
    ++job.next;
  } else {
    load->data = to;
    cut_pieces(job, *load, room);
  }
  load->last = job.next == job.copies.size();
  if (load->last) {
    job_.reset();
  }
  return load;
}

void LoadCutter::cut_pieces(Job& job, Load& load, std::uint64_t room) const {
  while (job.next < job.copies.size() && load.bytes < room) {
    const Copy& copy = job.copies[job.next];
    if (copy.place + job.done != load.place + load.bytes || copy.src.direct) {
      break;
    }
    const std::uint64_t most = copy.src.in_file() ? kFilePieceBytes : kPieceBytes;
    const std::uint64_t bytes = std::min({copy.bytes - job.done, room - load.bytes, most});
    load.pieces.push_back({load.data + load.bytes, part_of(copy.src, job.done, bytes), bytes});
    load.bytes += bytes;
    job.done += bytes;
    if (job.done == copy.bytes) {
      ++job.next;
      job.done = 0;
    }
  }
  load.unfilled = load.pieces.size();
}

} // namespace offload
