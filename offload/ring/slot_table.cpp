#include <offload/ring/slot_table.h>

#include <algorithm>
#include <new>

namespace offload {

SlotTable::SlotTable(std::vector<std::uint64_t> bytes, std::uint64_t ring_bytes, std::uint64_t batch_bytes, int lanes)
    : bytes_(std::move(bytes)),
      ring_(ring_bytes),
      gatherer_(std::min(batch_bytes, ring_bytes / 4), lanes),
      slots_(bytes_.size()) {}

std::uint64_t SlotTable::bytes(const Step& step) const {
  std::uint64_t total = 0;
  for (const WeightId weight : step) {
    total += bytes_[weight];
  }
  return total;
}

void SlotTable::free_if_idle(WeightId weight) {
  auto& slot = slots_[weight];
  if (slot && slot->claims == 0 && slot->leases == 0) {
    ring_.free(slot->place, bytes_[weight], slot->readers);
    slot.reset();
  }
}

void SlotTable::drop_claim(WeightId weight) {
  --slots_[weight]->claims;
  free_if_idle(weight);
}

void SlotTable::release(WeightId weight, FencePtr used) {
  Slot& slot = *slots_[weight];
  --slot.leases;
  keep_latest(slot.readers, std::move(used));
  free_if_idle(weight);
}

void SlotTable::mark_failed() {
  for (auto& slot : slots_) {
    if (slot && slot->arrival->issued.load(std::memory_order_acquire) && !slot->arrival->failure.empty()) {
      slot->failed = true;
    }
  }
}

std::size_t SlotTable::refetch(const Step& step, std::vector<Batch>& out) {
  std::vector<Fetch> fetches;
  for (const WeightId weight : step) {
    if (slots_[weight]->failed) {
      slots_[weight]->failed = false;
      fetches.push_back({weight, slots_[weight]->place, bytes_[weight]});
      fetched_ -= bytes_[weight];
    }
  }
  hand_out(fetches, out);
  return fetches.size();
}

/// In batches.
void SlotTable::hand_out(const std::vector<Fetch>& fetches, std::vector<Batch>& out) {
  const auto before = static_cast<std::ptrdiff_t>(out.size());
  gatherer_.gather(fetches, ring_, out);
  for (auto batch = out.begin() + before; batch != out.end(); ++batch) {
    for (const Fetch& fetch : batch->fetches) {
      slots_[fetch.weight]->arrival = batch->arrival;
      fetched_ += fetch.bytes;
    }
  }
}

std::uint64_t SlotTable::bytes_ahead() const {
  std::uint64_t total = 0;
  for (WeightId weight = 0; weight < slots_.size(); ++weight) {
    total += slots_[weight] && slots_[weight]->fresh ? bytes_[weight] : 0;
  }
  return total;
}

std::vector<WeightId> SlotTable::leased() const {
  std::vector<WeightId> weights;
  for (WeightId weight = 0; weight < slots_.size(); ++weight) {
    if (slots_[weight] && slots_[weight]->leases > 0) {
      weights.push_back(weight);
    }
  }
  return weights;
}

void SlotTable::append_layout(std::vector<std::uint64_t>& layout) const {
  layout.push_back(ring_.cursor());
  for (const auto& slot : slots_) {
    layout.push_back(slot ? slot->place : ~0ULL);
    layout.push_back(slot ? 2 * static_cast<std::uint64_t>(slot->claims) + (slot->fresh ? 1 : 0) : 0);
  }
}

SlotTable::Transaction::~Transaction() {
  if (committed_) {
    return;
  }
  try {
    take_back_places(0);
    for (const WeightId weight : claims_) {
      if (slots_.has_place(weight)) {
        slots_.drop_claim(weight);
      }
    }
    for (const WeightId weight : leases_) {
      if (slots_.has_place(weight)) {
        --slots_.slots_[weight]->leases;
        slots_.free_if_idle(weight);
      }
    }
  } catch (const std::bad_alloc&) {
    slots_.lost_ = true;
  }
  slots_.ring_.set_cursor(cursor_);
}

/// Nothing has been written there: the readers of before still count.
void SlotTable::Transaction::take_back_places(std::size_t first) {
  while (fetches_.size() > first) {
    slots_.slots_[fetches_.back().weight].reset();
    slots_.ring_.free(fetches_.back().place, fetches_.back().bytes, {});
    fetches_.pop_back();
  }
}

bool SlotTable::Transaction::place(const Step& weights) {
  Ring& ring = slots_.ring_;
  const std::uint64_t cursor = ring.cursor();
  const std::size_t before = fetches_.size();
  fetches_.reserve(before + weights.size());
  auto whole = weights.empty() ? std::nullopt : ring.allocate(slots_.bytes(weights));
  for (const WeightId weight : weights) {
    const std::uint64_t bytes = slots_.bytes_[weight];
    const auto place = whole ? whole : ring.allocate(bytes);
    if (!place) {
      take_back_places(before);
      ring.set_cursor(cursor);
      return false;
    }
    slots_.slots_[weight].emplace(Slot{*place, nullptr, 0, 0, true, false, {}});
    fetches_.push_back({weight, *place, bytes});
    if (whole) {
      *whole += bytes;
    }
  }
  return true;
}

void SlotTable::Transaction::claim(WeightId weight) {
  claims_.push_back(weight);
  slots_.claim(weight);
}

void SlotTable::Transaction::lease(WeightId weight) {
  leases_.push_back(weight);
  ++slots_.slots_[weight]->leases;
}

bool SlotTable::Transaction::displace(WeightId weight) {
  Slot& slot = *slots_.slots_[weight];
  if (slot.leases != 1 || slot.claims != 0) {
    return false;
  }
  leases_.erase(std::find(leases_.begin(), leases_.end(), weight));
  slot.leases = 0;
  slots_.free_if_idle(weight);
  return true;
}

std::uint64_t SlotTable::Transaction::bytes() const {
  std::uint64_t total = 0;
  for (const Fetch& fetch : fetches_) {
    total += fetch.bytes;
  }
  return total;
}

void SlotTable::Transaction::commit(std::vector<Batch>& out) {
  slots_.hand_out(fetches_, out);
  for (const WeightId weight : leases_) {
    slots_.slots_[weight]->fresh = false;
  }
  committed_ = true;
}

} // namespace offload
