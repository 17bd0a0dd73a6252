#include <offload/runtime/engine.h>

#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <cstring>
#include <functional>

#include <offload/bytes.h>
#include <offload/device/cuda_calls.h>
#include <offload/module.h>

namespace offload {

Engine::Engine(const Model& model, Transport& transport, Config config)
    : model_(model), transport_(transport), config_(std::move(config)) {
  if (config_.file) {
    reader_ = std::make_shared<FileReader>(config_.file, make_disk(config_.file, FileReader::kReadsInFlight));
  }
  if (config_.to_fill.empty()) {
    config_.host->pin(model_.host.pinned_weights);
  } else {
    begin_to_fill();
  }
  const auto source = std::make_shared<const HostSource>(HostSource{reader_.get(), fill_.get(), config_.mapped});
  first_ = transport_.join({model_.weights, host_places(*source), source, reader_ ? config_.file : nullptr});
}

void Engine::begin_to_fill() {
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

HostPlaces Engine::host_places(const HostSource& from) const {
  HostPlaces places(model_.count());
  for (WeightId weight = 0; weight < model_.count(); ++weight) {
    const Source& src = source(weight);
    if (bytes(weight) > 0) {
      places[weight] = in_file(weight) ? offload::in_file(from, src.offset, src.bytes)
                                       : in_memory(host_bytes(weight), src.direct && model_.device.is_cuda(), &from);
    }
  }
  return places;
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
  transport_.leave(first_);
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
  config_.lender->detach();
  slab_.reset();
  placed_bytes_ = 0;
  resident_bytes_ = 0;
}

void Engine::report(Stats& stats) const {
  stats.bytes_resident = model_.fixed + resident_bytes_;
  stats.bytes_in_place = config_.lender->bytes_in_place();
  stats.bytes_in_cache = config_.lender->bytes_in_cache();
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
  config_.lender->detach();
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
    ring_ = slab_->data() + end;
    config_.lender->attach({.first_in_ring = first_,
                            .resident = std::move(resident),
                            .locate = [this](WeightId weight) { return locate(weight); },
                            .mapped = config_.mapped},
                           known);
    resident_bytes_ = bytes_of(residency) - residency.ring_bytes;
  } catch (...) {
    clear();
    throw;
  }
}

} // namespace offload
