#include <offload/runtime/transport.h>

#include <ATen/Parallel.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <thread>
#include <utility>

#include <offload/bytes.h>
#include <offload/device/cuda_link.h>
#include <offload/device/host_link.h>
#include <offload/module.h>
#include <offload/plan/simulate.h>

namespace offload {

namespace {

HostMemory make_staging(c10::Device device, std::uint64_t bytes) {
  HostMemory staging(bytes);
  if (bytes > 0) {
    const c10::DeviceGuard guard(device);
    std::fill_n(staging.data(), bytes, std::byte{0});
    staging.pin(bytes);
  }
  return staging;
}

} // namespace

Transport::Transport(c10::Device device, int lanes, std::uint64_t staging_bytes)
    : device_(device),
      staging_(make_staging(device, staging_bytes)),
      gate_(std::make_shared<LaneGate>(lanes)),
      lanes_(make_lanes(device, lanes, gate_)),
      link_(device.is_cuda() ? make_cuda_link(device.index(), lanes_->calls()) : make_host_link()) {}

/// The ids are those of the first gap that is large enough, and do not change while others come and go.
WeightId Transport::join(Member member) {
  WeightId first = 0;
  auto place = members_.begin();
  while (place != members_.end() && place->first - first < member.weights->size()) {
    first = place->first + place->second.weights->size();
    ++place;
  }
  members_.emplace(place, first, std::move(member));
  return first;
}

void Transport::leave(WeightId first, const HostSource* source) {
  const auto is_it = [&](const auto& member) { return member.first == first && member.second.source.get() == source; };
  if (std::none_of(members_.begin(), members_.end(), is_it)) {
    return;
  }
  if (streaming_ && std::any_of(streaming_->sources.begin(), streaming_->sources.end(),
                                [&](const auto& streams) { return streams.get() == source; })) {
    stop();
  }
  std::erase_if(members_, is_it);
}

WeightTablePtr Transport::all_weights() const {
  if (members_.size() == 1 && members_.front().first == 0) {
    return members_.front().second.weights;
  }
  WeightTable all;
  for (const auto& [first, member] : members_) {
    all.resize(first); // what is between members has no bytes
    all.insert(all.end(), member.weights->begin(), member.weights->end());
  }
  return std::make_shared<const WeightTable>(std::move(all));
}

std::unique_ptr<Store> Transport::make_store(std::byte* ring) const {
  HostPlaces places;
  bool all_direct = true;
  bool mostly_cached = false;
  for (const auto& [first, member] : members_) {
    places.resize(first);
    places.insert(places.end(), member.places.begin(), member.places.end());
    for (const WeightEntry& weight : *member.weights) {
      all_direct = all_direct && (weight.bytes == 0 || weight.source.direct); // none in a file is
    }
    mostly_cached = mostly_cached || (member.file && member.file->cached_share() > kMostlyCached);
  }
  if (all_direct) {
    return make_direct_store(*link_, std::move(places), ring);
  }
  int threads = staging_threads();
  if (device_.is_cuda()) {
    const StagingBuffers buffers{staging_.data(), staging_.bytes() / kStagingBuffers, kStagingBuffers};
    return make_staged_store(*link_, std::move(places), ring, buffers, threads);
  }
  if (mostly_cached) { // who copies takes a processor from those who compute
    const int spare = static_cast<int>(std::thread::hardware_concurrency()) - at::get_num_threads();
    threads = std::clamp(spare, 1, threads);
  }
  return make_in_place_store(*link_, std::move(places), ring, threads);
}

void Transport::start(RingMemory ring) {
  const c10::DeviceGuard guard(device_);
  auto streaming = std::make_shared<Streaming>();
  streaming->ring = std::move(ring);
  for (const auto& member : members_) {
    streaming->sources.push_back(member.second.source);
  }
  streaming->store = make_store(streaming->ring.data);
  streaming->streamer = std::make_unique<Streamer>(StreamerConfig{.link = link_.get(),
                                                                  .store = streaming->store.get(),
                                                                  .ring = streaming->ring.data,
                                                                  .ring_bytes = streaming->ring.bytes,
                                                                  .batch_bytes = kBatchBytes,
                                                                  .lanes = gate_->lanes(),
                                                                  .weights = all_weights()});
  const std::lock_guard lock(mutex_);
  streaming_ = std::move(streaming);
}

void Transport::stop() {
  try {
    lanes_->synchronize();          // nobody reads the ring any more
  } catch (const std::exception&) { // a device that is gone reads nothing
  }
  std::shared_ptr<Streaming> gone;
  {
    const std::lock_guard lock(mutex_);
    before_ = counts();
    gone = std::move(streaming_);
  }
  if (gone) {
    gone->streamer->stop();
  }
  const std::lock_guard lock(mutex_);
  before_.bytes_used = link_->bytes(); // nobody will use what was ahead
}

/// Of this streamer and those before. The caller holds the mutex.
StreamerCounts Transport::counts() const {
  StreamerCounts sum = before_;
  if (streaming_) {
    sum.add(streaming_->streamer->counts());
  }
  return sum;
}

void Transport::report(Stats& stats) const {
  std::unique_lock lock(mutex_);
  const StreamerCounts counts = this->counts();
  lock.unlock();
  stats.misses = counts.misses;
  stats.passes = counts.passes.passes;
  stats.calls_in_passes = counts.passes.calls;
  stats.wait_door_us = counts.door_us;
  stats.wait_calls_us = counts.calls_us;
  stats.bytes_streamed = link_->bytes();
  stats.bytes_ahead = stats.bytes_streamed - std::min(stats.bytes_streamed, counts.bytes_used);
  stats.copies = link_->copies();
  stats.stall_us = link_->stall_us();
}

} // namespace offload
