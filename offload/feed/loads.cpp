#include <offload/feed/loads.h>

#include <algorithm>
#include <utility>

#include <offload/bytes.h>

namespace offload {

namespace {

constexpr std::uint64_t kPieceBytes = 128_KiB;
constexpr std::uint64_t kFilePieceBytes = FileReader::kMostBytes;
constexpr std::uint64_t kLoadInPlaceBytes = 8_MiB; // where no buffer limits a load

/// The part of `place` from `done` on, of `bytes` at most.
HostPlace part_of(const HostPlace& place, std::uint64_t done, std::uint64_t bytes) {
  if (!place.in_file()) {
    return in_memory(place.memory + done);
  }
  return {nullptr, place.offset + done, done < place.bytes ? std::min(bytes, place.bytes - done) : 0};
}

} // namespace

void LoadCutter::begin(Batch&& batch) {
  auto job = std::make_shared<Job>();
  job->copies = merge_neighbours(batch, host_, [&](WeightId a, WeightId b) { return direct_[a] == direct_[b]; });
  job->batch = std::move(batch);
  job_ = std::move(job);
}

/// Where the ring is filled in place, so is what the link could read: what it copies would come later than what threads
/// fill.
bool LoadCutter::is_direct(const Copy& copy) const { return !fills_in_place() && direct_[copy.first]; }

std::shared_ptr<Load> LoadCutter::cut(int buffer) {
  Job& job = *job_;
  auto load = std::make_shared<Load>();
  load->job = job_;
  load->place = job.copies[job.next].place + job.done;
  if (is_direct(job.copies[job.next])) {
    load->data = const_cast<std::byte*>(job.copies[job.next].src.memory);
    load->bytes = job.copies[job.next].bytes;
    ++job.next;
  } else if (fills_in_place()) {
    load->data = ring_ + load->place;
    cut_pieces(job, *load, kLoadInPlaceBytes);
  } else {
    load->buffer = buffer;
    load->data = staging_.data + buffer * staging_.buffer_bytes;
    cut_pieces(job, *load, staging_.buffer_bytes);
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
    if (copy.place + job.done != load.place + load.bytes || is_direct(copy)) {
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
