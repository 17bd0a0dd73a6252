#include <offload/stream/streamer.h>

#include <algorithm>
#include <chrono>
#include <new>

#include <offload/bytes.h>
#include <offload/error.h>

namespace offload {

Streamer::Streamer(StreamerConfig config)
    : config_(std::move(config)),
      scheduler_(config_.bytes, config_.ring_bytes, config_.batch_bytes, config_.lanes),
      lanes_(config_.lanes) {}

Streamer::~Streamer() {
  config_.store->drain();
  try {
    config_.link->synchronize(*config_.link->record_arrived());
  } catch (const std::exception&) { // a device that is gone copies nothing
  }
}

void Streamer::check() const {
  if (lost_) {
    throw Error("host memory ran out while weights were scheduled: they have to be placed anew");
  }
  if (!broken_.empty()) {
    throw Error("the device refused an earlier command and can not be used any more: " + broken_);
  }
}

bool Streamer::lost() const {
  const std::lock_guard lock(mutex_);
  return lost_;
}

/// Changes what scheduler and store know, under the mutex. They do not undo what is half done when memory runs out; who
/// waits for others is told.
template <typename Change>
void Streamer::change(Change change) {
  try {
    change();
  } catch (const std::bad_alloc&) {
    lost_ = true;
    released_.notify_all();
  }
}

void Streamer::issue(std::vector<Batch>& batches) {
  for (Batch& batch : batches) {
    config_.store->issue(std::move(batch));
  }
  batches.clear();
}

void Streamer::begin(int lane, std::shared_ptr<const Sequence> sequence) {
  const std::lock_guard lock(mutex_);
  check();
  lanes_[lane].executed.clear();
  scheduler_.set_active(lane, true);
  change([&] {
    std::vector<Batch> batches;
    scheduler_.expect(lane, std::move(sequence));
    scheduler_.prefetch(lane, batches);
    issue(batches);
  });
  check();
}

Sequence Streamer::end(int lane) {
  const std::lock_guard lock(mutex_);
  scheduler_.set_active(lane, false);
  return std::move(lanes_[lane].executed);
}

void Streamer::expect(int lane, std::shared_ptr<const Sequence> sequence) {
  const std::lock_guard lock(mutex_);
  if (lost_) {
    return; // the next call is told
  }
  change([&] {
    std::vector<Batch> batches;
    scheduler_.expect(lane, std::move(sequence));
    scheduler_.prefetch(lane, batches);
    issue(batches);
  });
}

/// True when every lane that holds leases waits for others to give theirs back.
bool Streamer::nobody_will_release() const {
  return std::all_of(lanes_.begin(), lanes_.end(), [](const Lane& lane) { return lane.leases == 0 || lane.blocked; });
}

void Streamer::acquire(int lane, const Step& step) {
  std::vector<ArrivalPtr> arrivals;
  {
    std::unique_lock lock(mutex_);
    check();
    std::vector<Batch> batches;
    Lane& self = lanes_[lane];
    const auto lease = [&] {
      bool leased = false;
      change([&] { leased = scheduler_.acquire(lane, step, batches); });
      check();
      return leased;
    };
    while (!lease()) {
      self.blocked = true;
      if (nobody_will_release()) {
        self.blocked = false;
        std::string wanted;
        std::uint64_t bytes = 0;
        for (const WeightId weight : step) {
          wanted += (wanted.empty() ? "" : ", ") + config_.names[weight];
          bytes += config_.bytes[weight];
        }
        std::string held;
        for (const WeightId weight : scheduler_.leased()) {
          held += (held.empty() ? "" : ", ") + config_.names[weight];
        }
        throw Error("no place for " + wanted + " (" + format_bytes(bytes) + ") in a ring of " +
                    format_bytes(config_.ring_bytes) + (held.empty() ? "" : " while these are in use: " + held) +
                    ": raise vram_budget");
      }
      released_.wait(lock);
      self.blocked = false;
      check();
    }
    change([&] {
      if (scheduler_.starved(lane)) {
        scheduler_.prefetch(lane, batches); // what fits beside the step that is in use now
      }
      issue(batches);
      self.executed.push_back(step);
      for (const WeightId weight : step) {
        arrivals.push_back(scheduler_.arrival(weight));
      }
    });
    check();
    self.leases += static_cast<int>(step.size());
  }
  try {
    wait_arrived(lane, step, arrivals);
  } catch (...) {
    release(lane, step);
    const std::lock_guard lock(mutex_);
    scheduler_.abandon();
    throw;
  }
}

void Streamer::wait_arrived(int lane, const Step& step, const std::vector<ArrivalPtr>& arrivals) {
  for (std::size_t i = 0; i < step.size(); ++i) {
    const Arrival& arrival = *arrivals[i];
    if (!arrival.issued.load(std::memory_order_acquire)) {
      const auto begin = std::chrono::steady_clock::now();
      config_.store->wait_issued(arrival);
      const std::chrono::duration<double, std::micro> waited = std::chrono::steady_clock::now() - begin;
      config_.link->note_thread_wait(waited.count());
    }
    if (!arrival.failure.empty()) {
      const std::string what = "streaming " + config_.names[step[i]] + " failed: " + arrival.failure;
      if (arrival.of_archive) {
        throw ArchiveError(what);
      }
      throw Error(what);
    }
    // Copies are in order, so a stream that waited for a later one has waited for this one.
    std::uint64_t& arrived = lanes_[lane].arrived;
    if (arrival.fence->order() > arrived) {
      config_.link->wait_arrived(lane, *arrival.fence);
      arrived = arrival.fence->order();
    }
  }
}

void Streamer::release(int lane, const Step& step) noexcept {
  FencePtr used;
  std::string failure;
  bool has_memory = true;
  try {
    used = config_.link->record_used(lane);
  } catch (const std::bad_alloc&) {
    has_memory = false;
  } catch (const std::exception& error) {
    failure = error.what();
  }
  const std::lock_guard lock(mutex_);
  lanes_[lane].leases -= static_cast<int>(step.size());
  lost_ = lost_ || !has_memory;
  if (used && !lost_) {
    change([&] {
      for (const WeightId weight : step) {
        scheduler_.release(lane, weight, used);
      }
      std::vector<Batch> batches;
      scheduler_.prefetch(lane, batches);
      issue(batches);
    });
  } else if (!failure.empty() && broken_.empty()) {
    broken_ = failure; // the places stay taken: nobody knows when they are read
  }
  for (Lane& other : lanes_) {
    other.blocked = false; // until it has woken up and found that this was not enough
  }
  released_.notify_all();
}

std::byte* Streamer::address(WeightId weight) const {
  if (const std::byte* outside = config_.store->outside_ring(weight)) {
    return const_cast<std::byte*>(outside); // nobody writes a weight
  }
  const std::lock_guard lock(mutex_);
  return config_.ring + scheduler_.place(weight);
}

std::uint64_t Streamer::misses() const {
  const std::lock_guard lock(mutex_);
  return scheduler_.misses();
}

std::vector<std::uint64_t> Streamer::layout() const {
  const std::lock_guard lock(mutex_);
  return scheduler_.layout();
}

std::uint64_t Streamer::bytes_ahead() const {
  const std::lock_guard lock(mutex_);
  config_.store->drain(); // what is on its way to the link has not been counted there
  return scheduler_.bytes_ahead();
}

} // namespace offload
