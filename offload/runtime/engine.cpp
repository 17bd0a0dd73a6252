#include <offload/runtime/engine.h>

#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <iterator>

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
  source_ = std::make_shared<const HostSource>(HostSource{reader_.get(), fill_.get(), config_.mapped});
  first_ = transport_.join({model_.weights, host_places(*source_), source_, reader_ ? config_.file : nullptr});
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
  if (std::any_of(slabs_.begin(), slabs_.end(), [&](const Slab& slab) { return slab.memory->contains(address); }) ||
      (config_.file && config_.file->contains(address))) {
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

Engine::~Engine() { leave(); }

void Engine::leave() {
  if (fill_) {
    fill_->cancel();
  }
  transport_.leave(first_, source_.get());
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
  slabs_.clear();
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
  const auto slab =
      std::find_if(slabs_.begin(), slabs_.end(), [&](const Slab& one) { return one.residency.stays(weight); });
  if (!in_file(weight) || slab == slabs_.end()) {
    return false;
  }
  const c10::DeviceGuard guard(model_.device);
  slab->memory->download(slab->places[weight], to, bytes(weight));
  return true;
}

bool Engine::stays(WeightId weight) const {
  return std::any_of(slabs_.begin(), slabs_.end(), [&](const Slab& slab) { return slab.residency.stays(weight); });
}

/// What goes on at the same time, beside calls, delays copies of theirs by no more than its own time on the link.
void Engine::upload(WeightId weight, Uploads& uploads, std::byte* to, std::uint64_t offset,
                    const OnPart& on_part) const {
  constexpr std::uint64_t kAtOnce = 64_MiB; // less has a small share of a busy link: each wait is for its turn
  const Source& src = source(weight);
  const bool on_host = model_.device.is_cpu();
  const bool by_reading = in_file(weight) && !on_host;
  const std::uint64_t part = in_file(weight) ? 16_MiB : kAtOnce;
  HostMemory read(by_reading ? std::min(part, src.bytes) : 0);
  for (std::uint64_t done = 0; done < src.bytes;) {
    std::uint64_t count = std::min(part, src.bytes - done);
    if (!in_file(weight)) {
      // CUDA copies what is page-locked, or what is not, but no range that is both.
      const std::uint64_t begin = src.offset + done;
      const std::uint64_t pinned = std::clamp(model_.host.pinned_weights, begin, begin + count) - begin;
      count = pinned > 0 ? pinned : count;
      uploads.add(offset + done, await_host_bytes(weight) + done, count);
    } else {
      std::byte* const there = on_host ? to + offset + done : read.data();
      reader_->read_all(there, src.offset + done, count);
      if (!on_host) {
        uploads.add(offset + done, there, count);
      }
    }
    done += count;
    if (const std::uint64_t came = on_host ? count : uploads.under_way(); on_host || by_reading || came >= kAtOnce) {
      uploads.wait();
      if (on_part) {
        on_part(came);
      }
    }
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

/// Weights that stay in this slab go from one place to the other. Both layouts have them in one order: so nothing
/// is written over before it moves, where those that go down are taken from below, and then those that go up from
/// above.
void Engine::move_within(Slab& slab, const std::vector<std::uint64_t>& to) const {
  const auto move = [&](WeightId weight, bool down) {
    const std::uint64_t from = slab.places[weight];
    if (from != kNowhere && to[weight] != kNowhere && to[weight] != from && (to[weight] < from) == down) {
      std::memmove(slab.memory->data() + to[weight], slab.memory->data() + from, bytes(weight));
    }
  };
  for (WeightId weight = 0; weight < to.size(); ++weight) {
    move(weight, true);
  }
  for (WeightId weight = to.size(); weight > 0; --weight) {
    move(weight - 1, false);
  }
}

std::uint64_t Engine::slab_bytes(const Residency& residency) const {
  const std::uint64_t taken =
      model_.device.is_cpu() ? bytes_taken_on_host(residency, *model_.weights) : bytes_of(residency);
  return align_up(taken, granularity(model_.device));
}

Engine::Slab Engine::prepare(const Residency& residency, const OnPart& on_part) const {
  const c10::DeviceGuard guard(model_.device);
  Slab slab{residency, nullptr, places_of(residency)};
  slab.memory = std::make_shared<DeviceMemory>(model_.device.index(), slab_bytes(residency), "weights");
  slab.ring = slab.memory->data();
  Uploads uploads(*slab.memory);
  for (WeightId weight = 0; weight < model_.count(); ++weight) {
    if (slab.places[weight] != kNowhere) {
      upload(weight, uploads, slab.memory->data(), slab.places[weight], on_part);
      slab.ring = slab.memory->data() + slab.places[weight] + bytes(weight);
    }
  }
  uploads.wait();
  return slab;
}

/// Has `change` alter the slabs. Where that throws, nothing is placed.
void Engine::exchange(const std::function<void()>& change, const Placeholders& known) {
  const c10::DeviceGuard guard(model_.device);
  config_.lender->detach();
  try {
    change();
    attach(known);
  } catch (...) {
    try {
      transport_.lanes().synchronize(); // calls that returned may still read what goes now
    } catch (const std::exception&) {   // the device is gone
    }
    clear();
    throw;
  }
}

void Engine::add(std::vector<Slab> slabs, const Placeholders& known) {
  exchange([&] { std::move(slabs.begin(), slabs.end(), std::back_inserter(slabs_)); }, known);
}

void Engine::drop_down_to(std::uint64_t bytes, const Placeholders& known) {
  exchange(
      [&] {
        while (counted_bytes() > bytes) {
          slabs_.pop_back();
        }
      },
      known);
}

/// See placed_bytes().
std::uint64_t Engine::counted_bytes() const {
  std::uint64_t sum = 0;
  for (const Slab& slab : slabs_) {
    sum += align_up(bytes_of(slab.residency), granularity(model_.device));
  }
  return sum;
}

void Engine::place(const Residency& residency, const Placeholders& known) {
  retry();
  const bool as_large = placed() && slabs_[0].memory->bytes() == slab_bytes(residency) &&
                        (model_.device.is_cpu() || residency == slabs_[0].residency);
  const auto in_place = [&](Slab& slab) {
    const std::vector<std::uint64_t> places = places_of(residency);
    move_within(slab, places);
    slab.ring = slab.memory->data();
    Uploads uploads(*slab.memory);
    for (WeightId weight = 0; weight < model_.count(); ++weight) {
      if (places[weight] != kNowhere && slab.places[weight] == kNowhere) {
        upload(weight, uploads, slab.memory->data(), places[weight], nullptr);
      }
      slab.ring = places[weight] == kNowhere ? slab.ring : slab.memory->data() + places[weight] + bytes(weight);
    }
    uploads.wait();
    slab.places = places;
    slab.residency = residency;
  };
  exchange(
      [&] {
        if (as_large && slabs_[0].memory.use_count() == 1) { // else somebody has kept a lease, and reads it
          in_place(slabs_[0]);
        } else {
          slabs_.clear(); // before others are taken
          placed_bytes_ = 0;
          slabs_.push_back(prepare(residency, nullptr));
        }
      },
      known);
}

/// Has what lies in the slabs lent from there.
void Engine::attach(const Placeholders& known) {
  std::vector<WeightLender::Bytes> resident(model_.count());
  std::uint64_t resident_bytes = 0;
  for (const Slab& slab : slabs_) {
    for (WeightId weight = 0; weight < model_.count(); ++weight) {
      if (slab.places[weight] != kNowhere) {
        resident[weight] = {slab.memory, slab.memory->data() + slab.places[weight]};
      } else if (slab.residency.stays(weight)) {
        resident[weight] = bytes_on_host(weight);
      }
    }
    resident_bytes += bytes_of(slab.residency) - slab.residency.ring_bytes;
  }
  config_.lender->attach({.first_in_ring = first_,
                          .resident = std::move(resident),
                          .locate = [this](WeightId weight) { return locate(weight); },
                          .mapped = config_.mapped},
                         known);
  placed_bytes_ = counted_bytes();
  resident_bytes_ = resident_bytes;
}

} // namespace offload
