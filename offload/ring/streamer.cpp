#include <offload/ring/streamer.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <utility>

#include <offload/bytes.h>
#include <offload/error.h>

namespace offload {

namespace {

/// How long a call waits for others that do not go on: one may compute on the host for long, or wait for this one in a
/// way that nobody here can see.
constexpr std::chrono::milliseconds kPatience(500);

} // namespace

void StreamerCounts::add(const StreamerCounts& more) {
  misses += more.misses;
  bytes_used += more.bytes_used;
  passes.passes += more.passes.passes;
  passes.calls += more.passes.calls;
  door_us += more.door_us;
  calls_us += more.calls_us;
}

Streamer::Streamer(StreamerConfig config)
    : config_(std::move(config)),
      arrived_(config_.lanes, 0),
      scheduler_(all_resident(*config_.weights).bytes, config_.ring_bytes, config_.batch_bytes, config_.lanes),
      calls_(config_.lanes) {}

Streamer::~Streamer() { stop(); }

void Streamer::stop() noexcept {
  {
    const Lock lock(mutex_);
    released_.wait(mutex_, [&]() OFFLOAD_REQUIRES(mutex_) { return !outbox_.is_emptied; });
    if (std::exchange(stopped_, true)) {
      return;
    }
  }
  config_.store->stop();
  try {
    config_.link->synchronize(*config_.link->record_arrived());
  } catch (const std::exception&) { // a device that is gone copies nothing
  }
}

void Streamer::check() const {
  if (broken_.lost) {
    throw Error("host memory ran out while weights were scheduled: they have to be placed anew");
  }
  if (!broken_.device.empty()) {
    throw Error("the device refused an earlier command and can not be used any more: " + broken_.device);
  }
}

bool Streamer::lost() const {
  const Lock lock(mutex_);
  return broken_.lost;
}

/// Changes what the scheduler knows, under the mutex, and has issued what it decides on. It does not undo what is half
/// done when memory runs out: nothing of that is issued, nothing is changed any more, and those who wait for others get
/// an error.
/// False when memory ran out, now or before.
template <typename Change>
bool Streamer::change(Change change) {
  if (broken_.lost) {
    return false;
  }
  bool enough = true;
  const std::size_t decided = outbox_.batches.size();
  try {
    change();
    if (scheduler_.slots().lost()) {
      throw std::bad_alloc(); // which nothing could be thrown for there
    }
  } catch (const std::bad_alloc&) {
    enough = false;
    broken_.lost = true;
    outbox_.batches.resize(decided);
  }
  if (broken_.lost || outbox_.batches.size() > decided) {
    released_.notify_all(); // what others wait for may have a place now
  }
  mark_from(decided);
  issue();
  return enough;
}

/// Those of the batches that the store has not been given yet.
void Streamer::mark_from(std::size_t first) noexcept {
  constexpr std::size_t kMost = 1 << 16; // somebody has not come back for them
  try {
    for (std::size_t i = first; outbox_.marked && i < outbox_.batches.size(); ++i) {
      const Batch& batch = outbox_.batches[i];
      outbox_.marked->push_back({batch.fetches, batch.arrival});
      batch.arrival->is_marked = true;
    }
    if (outbox_.marked && outbox_.marked->size() > kMost) {
      outbox_.marked.reset();
    }
  } catch (const std::bad_alloc&) { // nobody needs them
    outbox_.marked.reset();
  }
}

void Streamer::mark_copies() {
  const Lock lock(mutex_);
  if (!outbox_.marked) {
    outbox_.marked.emplace();
  }
}

std::optional<std::vector<MarkedBatch>> Streamer::take_marked() {
  const Lock lock(mutex_);
  return std::exchange(outbox_.marked, std::nullopt);
}

/// Gives the store what the scheduler has decided on, in its order, and without the mutex, since the store may have to
/// wait for the disk. One thread does that for all: what others decide on meanwhile, it finds.
void Streamer::issue() {
  if (outbox_.is_emptied || outbox_.batches.empty()) {
    return;
  }
  outbox_.is_emptied = true;
  while (!outbox_.batches.empty()) {
    std::vector<Batch> batches = std::exchange(outbox_.batches, {});
    const Unlock unlocked(mutex_);
    for (Batch& batch : batches) {
      config_.store->issue(std::move(batch));
    }
  }
  outbox_.is_emptied = false;
  released_.notify_all();
}

void Streamer::begin(int lane, std::shared_ptr<const Sequence> sequence, WeightId module, Priority priority) {
  const Lock lock(mutex_);
  check();
  calls_[lane] = {};
  change([&]() OFFLOAD_REQUIRES(mutex_) {
    const PassCounts before = scheduler_.passes();
    scheduler_.begin(lane, std::move(sequence), outbox_.batches, module, priority);
    calls_[lane].counts.passes = {scheduler_.passes().passes - before.passes, scheduler_.passes().calls - before.calls};
  });
  check();
}

ExecutedCall Streamer::end(int lane) {
  const Lock lock(mutex_);
  change([&]() OFFLOAD_REQUIRES(mutex_) { scheduler_.end(lane, outbox_.batches); });
  released_.notify_all();
  ended_.add(calls_[lane].counts);
  return std::exchange(calls_[lane], {});
}

void Streamer::expect(int lane, std::shared_ptr<const Sequence> sequence, WeightId module) {
  const Lock lock(mutex_);
  change([&]() OFFLOAD_REQUIRES(mutex_) { scheduler_.expect(lane, std::move(sequence), outbox_.batches, module); });
}

/// Until the copies that `step` comes after have arrived: one lane for all who wait for the same ones, and then look
/// again. False when another does that.
bool Streamer::await_copies(int lane, const Step& step) {
  const ArrivalPtr last = scheduler_.awaited(lane, step);
  if (last && std::find(awaited_.begin(), awaited_.end(), last) != awaited_.end()) {
    return false;
  }
  if (last) {
    awaited_.push_back(last);
    const Unlock unlocked(mutex_);
    last->await_issued();
    try {
      if (last->failure.empty()) {
        config_.link->synchronize(*last->fence);
      }
    } catch (const std::exception&) { // the next command tells; a device that is gone brings nothing
    }
  }
  awaited_.erase(std::remove(awaited_.begin(), awaited_.end(), last), awaited_.end());
  change([&]() OFFLOAD_REQUIRES(mutex_) { scheduler_.arrive(lane, last, outbox_.batches); });
  released_.notify_all();
  return true;
}

void Streamer::refuse(const Step& step) const {
  std::string wanted;
  std::uint64_t bytes = 0;
  for (const WeightId weight : step) {
    wanted += (wanted.empty() ? "" : ", ") + (*config_.weights)[weight].name;
    bytes += (*config_.weights)[weight].bytes;
  }
  std::string held;
  for (const WeightId weight : scheduler_.slots().leased()) {
    held += (held.empty() ? "" : ", ") + (*config_.weights)[weight].name;
  }
  throw Error("no place for " + wanted + " (" + format_bytes(bytes) + ") in a ring of " +
              format_bytes(config_.ring_bytes) + (held.empty() ? "" : " while these are in use: " + held) +
              ": raise vram_budget");
}

void Streamer::acquire(int lane, const Step& step) {
  std::vector<ArrivalPtr> arrivals;
  {
    const Lock lock(mutex_);
    check();
    const auto lease = [&](bool at_once) OFFLOAD_REQUIRES(mutex_) {
      auto outcome = Scheduler::Outcome::waits_for_calls;
      const bool enough = change([&]() OFFLOAD_REQUIRES(mutex_) {
        ExecutedCall& call = calls_[lane];
        const std::uint64_t misses = scheduler_.misses();
        const std::uint64_t used = scheduler_.slots().bytes_used();
        outcome = scheduler_.acquire(lane, step, outbox_.batches, at_once);
        if (outcome == Scheduler::Outcome::leased) {
          call.counts.misses += scheduler_.misses() - misses;
          call.counts.bytes_used += scheduler_.slots().bytes_used() - used;
          call.steps.push_back(step);
          for (const WeightId weight : step) {
            arrivals.push_back(scheduler_.slots().arrival(weight));
          }
        }
      });
      if (!enough) { // what it would wait for has been dropped
        check();
      }
      return outcome;
    };
    bool in_time = true;
    for (auto outcome = lease(false); outcome != Scheduler::Outcome::leased; outcome = lease(!in_time)) {
      if (outcome == Scheduler::Outcome::refused) {
        refuse(step);
      }
      if (outcome == Scheduler::Outcome::waits_for_copies && await_copies(lane, step)) {
        continue;
      }
      const auto begin = std::chrono::steady_clock::now();
      released_.wait_for(mutex_, kPatience);
      const std::chrono::duration<double, std::micro> waited = std::chrono::steady_clock::now() - begin;
      in_time = waited < kPatience;
      if (outcome == Scheduler::Outcome::waits_for_calls) {
        ExecutedCall& call = calls_[lane];
        (call.steps.empty() ? call.counts.door_us : call.counts.calls_us) += waited.count();
      }
      check();
    }
  }
  try {
    wait_arrived(lane, step, arrivals);
  } catch (...) {
    release(lane, step);
    const Lock lock(mutex_);
    change([&]() OFFLOAD_REQUIRES(mutex_) { scheduler_.abandon(); });
    throw;
  }
}

void Streamer::wait_arrived(int lane, const Step& step, const std::vector<ArrivalPtr>& arrivals) {
  for (std::size_t i = 0; i < step.size(); ++i) {
    const Arrival& arrival = *arrivals[i];
    if (!arrival.issued.load(std::memory_order_acquire)) {
      const auto begin = std::chrono::steady_clock::now();
      arrival.await_issued(); // before the stream waits: see Note [Late fences] in core/link.h
      const std::chrono::duration<double, std::micro> waited = std::chrono::steady_clock::now() - begin;
      config_.link->note_thread_wait(waited.count());
    }
    if (!arrival.failure.empty()) {
      const std::string what = "streaming " + (*config_.weights)[step[i]].name + " failed: " + arrival.failure;
      if (arrival.of_archive) {
        throw ArchiveError(what);
      }
      throw Error(what);
    }
    // Copies are in order, so a stream that waited for a later one has waited for this one.
    std::uint64_t& arrived = arrived_[lane];
    if (arrival.fence->order() > arrived) {
      config_.link->wait_arrived(lane, *arrival.fence);
      arrived = arrival.fence->order();
    }
  }
}

void Streamer::release(int lane, const Step& step) noexcept {
  const Lock lock(mutex_);
  if (stopped_) {
    return;
  }
  change([&]() OFFLOAD_REQUIRES(mutex_) {
    FencePtr used;
    try {
      used = config_.link->record_used(lane);
      if (scheduler_.shares(lane)) { // copies may be handed out after the lane has gone on: see Note [Late fences]
        config_.link->record_now(*used);
      }
    } catch (const std::bad_alloc&) {
      throw;
    } catch (const std::exception& refused) {
      broken_.device = broken_.device.empty() ? refused.what()
                                              : broken_.device; // places stay taken: nobody knows when they are read
      return;
    }
    scheduler_.release(lane, step, used, outbox_.batches);
  });
  released_.notify_all();
}

std::byte* Streamer::address(WeightId weight) const {
  if (const std::byte* outside = config_.store->outside_ring(weight)) {
    return const_cast<std::byte*>(outside); // nobody writes a weight
  }
  const Lock lock(mutex_);
  return config_.ring + scheduler_.slots().place(weight);
}

StreamerCounts Streamer::counts() const {
  const Lock lock(mutex_);
  StreamerCounts sum = ended_;
  std::for_each(calls_.begin(), calls_.end(), [&](const ExecutedCall& call) { sum.add(call.counts); });
  return sum;
}

std::vector<std::uint64_t> Streamer::layout() const {
  const Lock lock(mutex_);
  return scheduler_.layout();
}

} // namespace offload
