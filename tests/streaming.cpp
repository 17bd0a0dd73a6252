#include "streaming.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace offload::test {

SequencePtr share(Sequence sequence) { return std::make_shared<const Sequence>(std::move(sequence)); }

SequencePtr each_once(std::size_t weights) {
  Sequence sequence;
  for (WeightId weight = 0; weight < weights; ++weight) {
    sequence.push_back({weight});
  }
  return share(std::move(sequence));
}

Streaming::Streaming(const Shape& shape) : link_(shape.lanes, shape.order, shape.seed), ring_(shape.ring_units) {
  Link* link = &link_;
  if (shape.skip) {
    link = &skipping_.emplace(link_, *shape.skip);
  }
  host_.resize(std::accumulate(shape.units.begin(), shape.units.end(), std::uint64_t{0}));
  std::mt19937 random(7);
  for (Unit& unit : host_) {
    for (std::size_t i = 0; i < kUnit; i += sizeof(std::uint32_t)) {
      const auto word = static_cast<std::uint32_t>(random());
      std::memcpy(unit.bytes + i, &word, sizeof(word));
    }
  }
  for (Unit& unit : ring_) {
    std::memset(unit.bytes, 0xEE, kUnit);
  }

  StreamerConfig config;
  const Unit* next = host_.data();
  for (const std::uint64_t units : shape.units) {
    const bool direct = shape.host == Host::mixed && weights_.size() % 2 == 0;
    weights_.push_back(in_memory(next->bytes, direct));
    bytes_.push_back(units * kUnit);
    next += units;
    if (shape.host != Host::direct && !direct) {
      link_.forbid(weights_.back().memory, bytes_.back());
    }
  }
  auto* ring = reinterpret_cast<std::byte*>(ring_.data());
  if (shape.host == Host::direct) {
    store_ = make_direct_store(*link, weights_, ring);
  } else {
    staging_.resize(shape.buffer_units * shape.buffers);
    store_ = make_staged_store(
        *link, weights_, ring,
        {reinterpret_cast<std::byte*>(staging_.data()), shape.buffer_units * kUnit, shape.buffers}, shape.threads);
  }
  config.link = link;
  config.store = store_.get();
  config.ring = ring;
  config.ring_bytes = shape.ring_units * kUnit;
  config.batch_bytes = shape.batch_units * kUnit;
  config.lanes = shape.lanes;
  config.weights = shared_table(bytes_);
  streamer_ = std::make_unique<Streamer>(std::move(config));
}

Streaming::~Streaming() {
  streamer_.reset();
  store_.reset();
  link_.run_all(); // reads that are still in the queues look at memory of this object
}

void Streaming::read(int lane, const Step& step) {
  for (const WeightId weight : step) {
    link_.read(lane, streamer_->address(weight), weights_[weight].memory, bytes_[weight], "w" + std::to_string(weight));
  }
}

void Streaming::visit(int lane, const Step& step) {
  acquire(lane, step);
  read(lane, step);
  release(lane, step);
}

void Streaming::call(int lane, const SequencePtr& sequence, const Sequence& steps) {
  begin(lane, sequence);
  for (const Step& step : steps) {
    visit(lane, step);
  }
  end(lane);
}

std::string Streaming::finish() {
  store_->drain();
  link_.run_all();
  std::string text;
  for (const std::string& problem : link_.problems()) {
    text += problem + '\n';
  }
  return text;
}

Step Dice::step(std::size_t weights, std::size_t most) {
  Step step;
  for (std::uint64_t n = from(1, most); n > 0; --n) {
    step.push_back(static_cast<WeightId>(from(0, weights - 1)));
  }
  std::sort(step.begin(), step.end());
  step.erase(std::unique(step.begin(), step.end()), step.end());
  return step;
}

Sequence Dice::sequence(std::size_t steps, std::size_t weights, std::size_t most) {
  Sequence sequence;
  while (sequence.size() < steps) {
    sequence.push_back(step(weights, most));
  }
  return sequence;
}

std::vector<std::uint64_t> Dice::sizes(std::size_t count, std::uint64_t most) {
  std::vector<std::uint64_t> sizes;
  while (sizes.size() < count) {
    sizes.push_back(from(1, most));
  }
  return sizes;
}

std::uint64_t sum(const std::vector<std::uint64_t>& sizes, const Step& step) {
  std::uint64_t bytes = 0;
  for (const WeightId weight : step) {
    bytes += sizes[weight];
  }
  return bytes;
}

std::uint64_t largest(const std::vector<std::uint64_t>& sizes, const Sequence& sequence) {
  std::uint64_t most = 0;
  for (const Step& step : sequence) {
    most = std::max(most, sum(sizes, step));
  }
  return most;
}

std::uint64_t total(const std::vector<std::uint64_t>& sizes, const Sequence& sequence) {
  std::uint64_t bytes = 0;
  for (const Step& step : sequence) {
    bytes += sum(sizes, step);
  }
  return bytes;
}

} // namespace offload::test
