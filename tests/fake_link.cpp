#include "fake_link.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include <offload/error.h>

namespace offload::test {

namespace {

constexpr std::array<const char*, kCalls> kNames = {"wait",        "copy",       "record_arrived", "wait_arrived",
                                                    "record_used", "record_now", "synchronize"};

std::size_t index(Call call) { return static_cast<std::size_t>(call); }

bool overlap(const std::byte* a, std::uint64_t a_bytes, const std::byte* b, std::uint64_t b_bytes) {
  const std::less<> before;
  return before(a, b + b_bytes) && before(b, a + a_bytes);
}

} // namespace

struct FakeLink::FakeFence final : Fence {
  FakeFence(int channel, std::size_t s, std::optional<std::uint64_t> l) : Fence(channel), stream(s), length(l) {}
  const std::size_t stream;
  mutable std::optional<std::uint64_t> length; // none before its event is recorded
};

FakeLink::Point FakeLink::point_of(const Fence& fence) const {
  const auto& fake = static_cast<const FakeFence&>(fence);
  if (!fake.length) {
    fake.length = streams_[fake.stream].enqueued;
  }
  return {fake.stream, *fake.length};
}

FakeLink::FakeLink(int lanes, Order order, std::uint32_t seed, Fences fences)
    : order_(order), fences_(fences), random_(seed), streams_(lanes + 1) {}

void FakeLink::count(Call call) {
  const std::uint64_t n = calls_[index(call)]++;
  if (n >= refused_from_[index(call)] && n < refused_to_[index(call)]) {
    throw Error(std::string("the fake device refuses to ") + kNames[index(call)]);
  }
}

void FakeLink::refuse(Call call, std::uint64_t after, std::uint64_t times) {
  const std::lock_guard lock(mutex_);
  refused_from_[index(call)] = calls_[index(call)] + after;
  refused_to_[index(call)] = refused_from_[index(call)] + times;
}

std::uint64_t FakeLink::calls(Call call) const {
  const std::lock_guard lock(mutex_);
  return calls_[index(call)];
}

std::vector<std::string> FakeLink::problems() const {
  const std::lock_guard lock(mutex_);
  return problems_;
}

void FakeLink::enqueue(std::size_t stream, Operation operation) {
  operation.number = number_++;
  streams_[stream].pending.push_back(std::move(operation));
  ++streams_[stream].enqueued;
  if (order_ == Order::random) { // the device works while the host goes on
    for (std::uint32_t n = random_() % 4; n > 1 && run_one(); --n) {
    }
  }
}

void FakeLink::wait(const Fence& used) {
  const std::lock_guard lock(mutex_);
  count(Call::wait);
  enqueue(kCopies, {.kind = Kind::wait, .after = point_of(used), .name = {}});
}

void FakeLink::wait_arrived(int lane, const Fence& arrived) {
  const std::lock_guard lock(mutex_);
  count(Call::wait_arrived);
  enqueue(lane + 1, {.kind = Kind::wait, .after = point_of(arrived), .name = {}});
}

FencePtr FakeLink::record_arrived() {
  const std::lock_guard lock(mutex_);
  count(Call::record_arrived);
  return std::make_shared<FakeFence>(Fence::of_link(), kCopies, streams_[kCopies].enqueued);
}

FencePtr FakeLink::record_used(int lane) {
  const std::lock_guard lock(mutex_);
  count(Call::record_used);
  const auto fence = std::make_shared<FakeFence>(lane, static_cast<std::size_t>(lane) + 1, std::nullopt);
  if (fences_ == Fences::immediate) {
    point_of(*fence);
  }
  return fence;
}

void FakeLink::record_now(const Fence& used) {
  const std::lock_guard lock(mutex_);
  count(Call::record_now);
  point_of(used);
}

void FakeLink::enqueue_copy(void* dst, const void* src, std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  count(Call::copy);
  for (const auto& [data, length] : forbidden_) {
    if (overlap(data, length, static_cast<const std::byte*>(src), bytes)) {
      problems_.emplace_back("a copy reads what is not page-locked");
    }
  }
  enqueue(kCopies, {.kind = Kind::copy,
                    .dst = static_cast<std::byte*>(dst),
                    .src = static_cast<const std::byte*>(src),
                    .bytes = bytes,
                    .name = {}});
}

void FakeLink::read(int lane, const std::byte* data, const std::byte* expected, std::uint64_t bytes, std::string name) {
  const std::lock_guard lock(mutex_);
  enqueue(lane + 1, {.kind = Kind::read, .src = data, .expected = expected, .bytes = bytes, .name = std::move(name)});
}

void FakeLink::forbid(const std::byte* data, std::uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  forbidden_.emplace_back(data, bytes);
}

bool FakeLink::reached(const Fence& arrived) {
  const std::lock_guard lock(mutex_);
  return is_done(point_of(arrived));
}

void FakeLink::synchronize(const Fence& fence) {
  const std::lock_guard lock(mutex_);
  count(Call::synchronize);
  while (!is_done(point_of(fence))) {
    if (!run_one()) {
      problems_.emplace_back("deadlock: a fence that is synchronized can not be reached");
      throw Error(problems_.back());
    }
  }
}

void FakeLink::run_all() {
  const std::lock_guard lock(mutex_);
  while (run_one()) {
  }
  for (const Stream& stream : streams_) {
    if (!stream.pending.empty()) {
      problems_.emplace_back("deadlock: a stream waits for what never comes");
    }
  }
}

/// The stream whose turn it is; none when all are empty or wait.
std::optional<std::size_t> FakeLink::choose() {
  std::vector<std::size_t> lanes;
  bool copies = false;
  for (std::size_t i = 0; i < streams_.size(); ++i) {
    const auto& pending = streams_[i].pending;
    if (pending.empty() || (pending.front().kind == Kind::wait && !is_done(pending.front().after))) {
      continue;
    }
    if (i == kCopies) {
      copies = true;
    } else {
      lanes.push_back(i);
    }
  }
  const bool copy_first =
      order_ == Order::compute_late || (order_ == Order::random && random_() % (lanes.size() + 1) == 0);
  if (copies && (copy_first || lanes.empty())) {
    return kCopies;
  }
  if (lanes.empty()) {
    return std::nullopt;
  }
  if (order_ == Order::compute_late && !streams_[kCopies].pending.empty()) { // only what copies wait for
    const std::size_t awaited = streams_[kCopies].pending.front().after.stream;
    if (std::find(lanes.begin(), lanes.end(), awaited) != lanes.end()) {
      return awaited;
    }
  }
  return lanes[random_() % lanes.size()];
}

bool FakeLink::run_one() {
  const auto stream = choose();
  if (!stream) {
    return false;
  }
  const Operation operation = std::move(streams_[*stream].pending.front());
  streams_[*stream].pending.pop_front();
  run(operation);
  ++streams_[*stream].done;
  return true;
}

void FakeLink::run(const Operation& operation) {
  if (operation.kind == Kind::copy) {
    for (std::size_t lane = 1; lane < streams_.size(); ++lane) {
      for (const Operation& read : streams_[lane].pending) {
        if (read.kind == Kind::read && read.number < operation.number &&
            overlap(read.src, read.bytes, operation.dst, operation.bytes)) {
          problems_.push_back(read.name + " is overwritten before it is read");
        }
      }
    }
    std::memcpy(operation.dst, operation.src, operation.bytes);
  } else if (operation.kind == Kind::read) {
    for (const Operation& copy : streams_[kCopies].pending) {
      if (copy.kind == Kind::copy && copy.number < operation.number &&
          overlap(copy.dst, copy.bytes, operation.src, operation.bytes)) {
        problems_.push_back(operation.name + " is read before it arrives");
      }
    }
    if (std::memcmp(operation.src, operation.expected, operation.bytes) != 0) {
      problems_.push_back(operation.name + " has wrong bytes");
    }
  }
}

} // namespace offload::test
