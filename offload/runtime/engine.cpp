#include <offload/runtime/engine.h>

#include <ATen/Parallel.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <thread>

#include <offload/bytes.h>
#include <offload/device/cuda_calls.h>
#include <offload/device/cuda_link.h>
#include <offload/device/host_link.h>
#include <offload/feed/stores.h>
#include <offload/module.h>

namespace offload {

Engine::Engine(const Model& model, Config config)
    : model_(model), config_(std::move(config)), lanes_(make_lanes(model.device, model.lanes, config_.gate)) {
  link_ = model_.device.is_cuda() ? make_cuda_link(model_.device.index(), lanes_->calls()) : make_host_link();
  if (config_.file) {
    reader_ = std::make_shared<FileReader>(config_.file, make_disk(config_.file, FileReader::kReadsInFlight));
  }
  if (config_.to_fill.empty()) {
    config_.host->pin(model_.host.pinned_weights);
    return;
  }
  HostFill::Callbacks callbacks;
  callbacks.on_progress = config_.on_progress;
  if (model_.host.pinned_weights > 0) {
    callbacks.prepare = [this] {
      const c10::DeviceGuard guard(model_.device);
      config_.host->pin(model_.host.pinned_weights);
    };
  }
  // One more than read, for the first is busy with page-locking while they do.
  fill_ = std::make_unique<HostFill>(reader_, config_.to_fill, std::move(callbacks), staging_threads() + 1);
  if (std::none_of(model_.weights->begin(), model_.weights->end(),
                   [](const WeightEntry& weight) { return weight.source.kind == Source::Kind::file; })) {
    reader_.reset(); // it goes when all has come
  }
}

const std::byte* Engine::host_bytes(WeightId weight) const {
  const c10::Storage& storage = config_.storages[weight];
  return (storage ? static_cast<const std::byte*>(storage.data()) : config_.host->data()) + source(weight).offset;
}

bool Engine::owns(const void* address) const {
  if ((slab_ && slab_->contains(address)) || (config_.file && config_.file->contains(address))) {
    return true;
  }
  const auto* byte = static_cast<const std::byte*>(address);
  for (WeightId weight = 0; weight < model_.count(); ++weight) {
    if (bytes(weight) > 0 && stays_on_host(weight) && std::less_equal<>()(host_bytes(weight), byte) &&
        std::less<>()(byte, host_bytes(weight) + bytes(weight))) {
      return true;
    }
  }
  return false;
}

const std::byte* Engine::await_host_bytes(WeightId weight) const {
  if (fill_) {
    fill_->await_bytes(host_bytes(weight) + bytes(weight));
  }
  return host_bytes(weight);
}

Engine::~Engine() {
  if (fill_) {
    fill_->cancel();
  }
  clear();
}

void Engine::check_file() const {
  if (reader_ || (fill_ && !fill_->all_there())) {
    config_.file->check_unchanged();
  }
}

void Engine::retry() const {
  if (fill_) {
    fill_->retry();
  }
}

void Engine::clear() {
  stop_streaming();
  slab_.reset();
  placed_bytes_ = 0;
}

void Engine::stop_streaming() {
  try {
    lanes_->synchronize();          // nobody reads the slab any more
  } catch (const std::exception&) { // a device that is gone reads nothing
  }
  config_.lender->detach();
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
StreamerCounts Engine::counts() const {
  StreamerCounts sum = before_;
  if (streaming_) {
    const StreamerCounts now = streaming_->streamer->counts();
    sum.misses += now.misses;
    sum.bytes_used += now.bytes_used;
    sum.passes.passes += now.passes.passes;
    sum.passes.calls += now.passes.calls;
    sum.door_us += now.door_us;
    sum.calls_us += now.calls_us;
  }
  return sum;
}

void Engine::report(Stats& stats) const {
  std::unique_lock lock(mutex_);
  const StreamerCounts counts = this->counts();
  stats.bytes_resident = model_.fixed + (streaming_ ? streaming_->bytes_resident : 0);
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
  stats.bytes_in_place = config_.lender->bytes_in_place();
  stats.bytes_in_cache = config_.lender->bytes_in_cache();
}

std::unique_ptr<Store> Engine::make_store(std::byte* ring) {
  HostPlaces host;
  bool all_direct = true;
  for (WeightId weight = 0; weight < model_.count(); ++weight) {
    const Source& src = source(weight);
    if (bytes(weight) == 0) {
      host.emplace_back();
      continue;
    }
    host.push_back(in_file(weight) ? HostPlace{nullptr, src.offset, src.bytes}
                                   : in_memory(host_bytes(weight), src.direct && model_.device.is_cuda()));
    all_direct = all_direct && src.direct; // none in the file is
  }
  if (all_direct) {
    return make_direct_store(*link_, std::move(host), ring, fill_.get());
  }
  FillSources sources{staging_threads(), reader_.get(), fill_.get()};
  if (model_.device.is_cuda()) {
    const StagingBuffers buffers{config_.staging.data(), config_.staging.bytes() / kStagingBuffers, kStagingBuffers};
    return make_staged_store(*link_, std::move(host), ring, buffers, sources);
  }
  if (reader_ && config_.file->cached_share() > kMostlyCached) { // who copies takes a processor from those who compute
    const int spare = static_cast<int>(std::thread::hardware_concurrency()) - at::get_num_threads();
    sources.threads = std::clamp(spare, 1, sources.threads);
  }
  return make_in_place_store(*link_, std::move(host), ring, sources, config_.mapped);
}

void Engine::copy_to_host(WeightId weight, std::byte* to) const {
  retry();
  if (in_file(weight)) {
    reader_->read_all(to, source(weight).offset, source(weight).bytes);
  } else {
    std::memcpy(to, await_host_bytes(weight), bytes(weight));
  }
}

bool Engine::copy_resident(WeightId weight, std::byte* to) const {
  if (!in_file(weight) || !placed() || !placed_.stays(weight)) {
    return false;
  }
  const c10::DeviceGuard guard(model_.device);
  slab_->download(places_of(placed_)[weight], to, bytes(weight));
  return true;
}

/// To its place in the slab.
void Engine::upload(WeightId weight, std::uint64_t offset) {
  if (!in_file(weight)) {
    const std::byte* from = await_host_bytes(weight);
    // CUDA copies what is page-locked, or what is not, but no range that is both.
    const std::uint64_t begin = source(weight).offset;
    const std::uint64_t pinned = std::clamp(model_.host.pinned_weights, begin, begin + bytes(weight)) - begin;
    slab_->upload(offset, from, pinned);
    slab_->upload(offset + pinned, from + pinned, bytes(weight) - pinned);
    return;
  }
  if (model_.device.is_cpu()) {
    copy_to_host(weight, slab_->data() + offset);
    return;
  }
  constexpr std::uint64_t kPart = 16_MiB;
  const std::uint64_t bytes = source(weight).bytes;
  HostMemory part(std::min(kPart, bytes));
  for (std::uint64_t done = 0; done < bytes; done += kPart) {
    const std::uint64_t count = std::min(kPart, bytes - done);
    reader_->read_all(part.data(), source(weight).offset + done, count);
    slab_->upload(offset + done, part.data(), count);
  }
}

/// Once they have come. Nobody writes them.
WeightLender::Bytes Engine::bytes_on_host(WeightId weight) const {
  auto* address = const_cast<std::byte*>(await_host_bytes(weight));
  const c10::Storage& storage = config_.storages[weight];
  return storage ? WeightLender::Bytes(std::make_shared<c10::Storage>(storage), address)
                 : WeightLender::Bytes(config_.host, address);
}

/// Where the device finds the bytes that the host has page-locked for it.
WeightLender::Bytes Engine::locate(WeightId weight) const {
  WeightLender::Bytes bytes = bytes_on_host(weight);
  if (model_.device.is_cpu()) {
    return bytes;
  }
  void* seen = nullptr;
  check_cuda(cudaHostGetDevicePointer(&seen, config_.host->data(), 0), "cudaHostGetDevicePointer");
  return {config_.host, static_cast<std::byte*>(seen) + source(weight).offset};
}

std::vector<std::uint64_t> Engine::places_of(const Residency& residency) const {
  std::vector<std::uint64_t> places(model_.count(), kNowhere);
  std::uint64_t end = 0;
  for (WeightId weight = 0; weight < places.size(); ++weight) {
    if (residency.stays(weight) && !stays_on_host(weight)) {
      places[weight] = end;
      end += bytes(weight);
    }
  }
  return places;
}

/// Weights that stay in the same slab go from one place to the other. Both layouts have them in one order: so nothing
/// is written over before it moves, where those that go down are taken from below, and then those that go up from
/// above.
void Engine::move_within_slab(const std::vector<std::uint64_t>& from, const std::vector<std::uint64_t>& to) {
  const auto move = [&](WeightId weight, bool down) {
    if (from[weight] != kNowhere && to[weight] != kNowhere && to[weight] != from[weight] &&
        (to[weight] < from[weight]) == down) {
      std::memmove(slab_->data() + to[weight], slab_->data() + from[weight], bytes(weight));
    }
  };
  for (WeightId weight = 0; weight < from.size(); ++weight) {
    move(weight, true);
  }
  for (WeightId weight = from.size(); weight > 0; --weight) {
    move(weight - 1, false);
  }
}

void Engine::place(const Residency& residency, const Placeholders& known) {
  const std::uint64_t taken =
      model_.device.is_cpu() ? bytes_taken_on_host(residency, *model_.weights) : bytes_of(residency);
  const std::uint64_t slab_bytes = align_up(taken, granularity(model_.device));
  const bool as_large = placed() && slab_->bytes() == slab_bytes && (model_.device.is_cpu() || residency == placed_);
  const std::vector<std::uint64_t> places = places_of(residency);
  retry();
  stop_streaming();
  const bool keeps_slab = as_large && slab_.use_count() == 1; // else somebody has kept a lease, and reads it
  const std::vector<std::uint64_t> before =
      keeps_slab ? places_of(placed_) : std::vector<std::uint64_t>(model_.count(), kNowhere);
  const c10::DeviceGuard guard(model_.device);
  if (!keeps_slab) {
    slab_.reset(); // before others are taken
    placed_bytes_ = 0;
    slab_ = std::make_shared<DeviceMemory>(model_.device.index(), slab_bytes, "weights"); // of a host it is -1
  }
  placed_ = residency;
  placed_bytes_ = align_up(bytes_of(residency), granularity(model_.device));
  std::vector<WeightLender::Bytes> resident(model_.count());
  std::uint64_t end = 0;
  try {
    move_within_slab(before, places);
    for (WeightId weight = 0; weight < model_.count(); ++weight) {
      if (places[weight] != kNowhere) {
        if (before[weight] == kNowhere) {
          upload(weight, places[weight]);
        }
        resident[weight] = {slab_, slab_->data() + places[weight]};
        end = places[weight] + bytes(weight);
      } else if (residency.stays(weight)) {
        resident[weight] = bytes_on_host(weight);
      }
    }
    std::byte* ring = slab_->data() + end;
    auto streaming = std::make_shared<Streaming>();
    streaming->slab = slab_;
    streaming->bytes_resident = bytes_of(residency) - residency.ring_bytes;
    streaming->store = make_store(ring);
    streaming->streamer = std::make_unique<Streamer>(StreamerConfig{.link = link_.get(),
                                                                    .store = streaming->store.get(),
                                                                    .ring = ring,
                                                                    .ring_bytes = residency.ring_bytes,
                                                                    .batch_bytes = kBatchBytes,
                                                                    .lanes = model_.lanes,
                                                                    .weights = model_.weights});
    config_.lender->attach({.streamer = {streaming, streaming->streamer.get()},
                            .resident = std::move(resident),
                            .locate = [this](WeightId weight) { return locate(weight); },
                            .mapped = config_.mapped},
                           known);
    const std::lock_guard lock(mutex_);
    streaming_ = std::move(streaming);
  } catch (...) {
    clear();
    throw;
  }
}

} // namespace offload
