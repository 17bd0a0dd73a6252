#include <offload/feed/transfers.h>

#include <algorithm>

#include <offload/bytes.h>

namespace offload {

namespace {

constexpr std::uint64_t kPieceBytes = 128_KiB; // of what is in memory

/// The part of `place` from `done` on, of `bytes` at most.
HostPlace part_of(const HostPlace& place, std::uint64_t done, std::uint64_t bytes) {
  if (!place.in_file()) {
    return in_memory(place.memory + done, place.direct, place.source);
  }
  return in_file(*place.source, place.offset + done, done < place.bytes ? std::min(bytes, place.bytes - done) : 0);
}

} // namespace

void TransferCutter::begin(Batch&& batch) {
  auto job = std::make_shared<Job>();
  job->copies = merge_neighbours(batch, host_);
  job->batch = std::move(batch);
  job_ = std::move(job);
}

std::shared_ptr<Transfer> TransferCutter::cut(std::byte* to, std::uint64_t room) {
  Job& job = *job_;
  auto transfer = std::make_shared<Transfer>();
  transfer->job = job_;
  transfer->place = next_place();
  if (const Copy& copy = job.copies[job.next]; copy.src.direct) {
    transfer->src = copy.src;
    transfer->data = const_cast<std::byte*>(copy.src.memory);
    transfer->bytes = copy.bytes;
    ++job.next;
  } else {
    transfer->data = to;
    cut_pieces(job, *transfer, room);
  }
  transfer->last = job.next == job.copies.size();
  if (transfer->last) {
    job_.reset();
  }
  return transfer;
}

void TransferCutter::cut_pieces(Job& job, Transfer& transfer, std::uint64_t room) const {
  while (job.next < job.copies.size() && transfer.bytes < room) {
    const Copy& copy = job.copies[job.next];
    if (copy.place + job.done != transfer.place + transfer.bytes || copy.src.direct) {
      break;
    }
    const std::uint64_t most = copy.src.in_file() ? FileReader::kMostBytes : kPieceBytes;
    const std::uint64_t bytes = std::min({copy.bytes - job.done, room - transfer.bytes, most});
    transfer.pieces.push_back({transfer.data + transfer.bytes, part_of(copy.src, job.done, bytes), bytes});
    transfer.bytes += bytes;
    job.done += bytes;
    if (job.done == copy.bytes) {
      ++job.next;
      job.done = 0;
    }
  }
  transfer.unfilled = transfer.pieces.size();
}

} // namespace offload
