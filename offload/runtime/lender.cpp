#include <offload/runtime/lender.h>

#include <algorithm>
#include <utility>

#include <offload/device/lane_memory.h>
#include <offload/error.h>

namespace offload {

/// It is made before it takes hold of its weights: nothing can fail in between that would leave them held.
class WeightLender::StreamedLease final : public Lease {
 public:
  StreamedLease(std::shared_ptr<Streamer> streamer, int lane, Step step)
      : streamer_(std::move(streamer)), lane_(lane), step_(std::move(step)) {}

  ~StreamedLease() override {
    if (acquired_) {
      streamer_->release(lane_, step_);
    }
  }
  StreamedLease(const StreamedLease&) = delete;
  StreamedLease& operator=(const StreamedLease&) = delete;

  void acquire() {
    streamer_->acquire(lane_, step_);
    acquired_ = true;
  }

 private:
  const std::shared_ptr<Streamer> streamer_; // that gave it: others may have come after it
  const int lane_;
  const Step step_;
  bool acquired_ = false;
};

thread_local WeightLender::Scope* WeightLender::Scope::current = nullptr;

void WeightLender::Scope::check_mapping() const {
  if (reads_mapping_) {
    lender_.placing_.mapped->check_unchanged();
  }
}

void WeightLender::attach(Placing placing, const Placeholders& known) {
  placing_ = std::move(placing);
  resident_tensors_.assign(placing_.resident.size(), {});
  for (WeightId weight = 0; weight < known.size(); ++weight) {
    if (placing_.resident[weight]) {
      for (const at::Tensor& placeholder : known[weight]) {
        resident_tensors_[weight].push_back(resident_tensor(weight, placeholder));
      }
    }
  }
}

void WeightLender::detach() {
  placing_ = {};
  resident_tensors_.clear();
}

at::Tensor WeightLender::resident_tensor(WeightId weight, const at::Tensor& placeholder) const {
  for (const at::Tensor& tensor : resident_tensors_[weight]) {
    if (tensor.dtype() == placeholder.dtype() && tensor.storage_offset() == placeholder.storage_offset() &&
        tensor.sizes() == placeholder.sizes() && tensor.strides() == placeholder.strides() &&
        tensor.requires_grad() == placeholder.requires_grad()) {
      return tensor;
    }
  }
  return tensor_on(storage_of(weight, placing_.resident[weight]), placeholder);
}

/// It keeps the memory: an operator may keep it.
c10::Storage WeightLender::storage_of(WeightId weight, Bytes bytes) const {
  void* data = bytes.get();
  auto owner = std::make_unique<Bytes>(std::move(bytes));
  const auto end = [](void* kept) { delete static_cast<Bytes*>(kept); };
  return {c10::Storage::use_byte_size_t(), (*weights_)[weight].bytes, at::DataPtr(data, owner.release(), end, device_)};
}

const WeightLender::Scope& WeightLender::current_scope(const at::Tensor& placeholder) const {
  const Scope* scope = Scope::current;
  if (!scope || &scope->lender_ != this) {
    throw Error("weight " + (*weights_)[placeholder_record(placeholder)->weight].name +
                " read outside a call: weights of an offload::Module are there only while it runs");
  }
  if (scope->must_stop_()) {
    throw LaneOverflow("the call wanted more memory than it can have");
  }
  return *scope;
}

at::Tensor WeightLender::lease_rows(const at::Tensor& placeholder, std::uint64_t rows) {
  const WeightId weight = placeholder_record(placeholder)->weight;
  const Scope& scope = current_scope(placeholder);
  if (!(*weights_)[weight].source.direct) {
    return lease({placeholder}, {})[0].whole();
  }
  if (scope.trace_) {
    scope.trace_->push_back({.weights = {weight}, .rows_only = true});
  }
  if (placing_.resident[weight]) {
    return resident_tensor(weight, placeholder);
  }
  Bytes bytes;
  try {
    bytes = placing_.locate(weight);
  } catch (const std::exception&) {
    scope.failure_ = std::current_exception();
    throw;
  }
  const std::uint64_t row_bytes = placeholder.dim() > 0 && placeholder.size(0) > 0
                                      ? placeholder.nbytes() / static_cast<std::uint64_t>(placeholder.size(0))
                                      : 0;
  bytes_in_place_ += rows * row_bytes;
  return tensor_on(storage_of(weight, std::move(bytes)), placeholder);
}

std::vector<LeasedWeight> WeightLender::lease(c10::ArrayRef<at::Tensor> placeholders, const ProductSize& size) {
  const Scope& scope = current_scope(placeholders[0]);
  std::vector<WeightId> weights; // by placeholder
  LeasedStep traced{{}, size.flops, /*rows_only=*/false, size.rows, size.bytes};
  Step step; // of them, those that stream, as they are in the ring
  const auto add_once = [](Step& to, WeightId weight) {
    if (std::find(to.begin(), to.end(), weight) == to.end()) {
      to.push_back(weight);
    }
  };
  for (const at::Tensor& placeholder : placeholders) {
    const WeightId weight = weights.emplace_back(placeholder_record(placeholder)->weight);
    if (scope.trace_) {
      add_once(traced.weights, weight);
    }
    if (!placing_.resident[weight]) {
      add_once(step, placing_.first_in_ring + weight);
    }
  }
  if (scope.trace_) {
    scope.trace_->push_back(std::move(traced));
  }
  std::vector<c10::Storage> storages(step.size());
  if (!step.empty()) {
    const auto lease = std::make_shared<StreamedLease>(scope.streamer_, scope.lane_, step);
    const auto bytes_of = [&](WeightId in_ring) { return (*weights_)[in_ring - placing_.first_in_ring].bytes; };
    bool any_mapped = false;
    try {
      if (scope.clock_) {
        scope.clock_->end_lap();
      }
      lease->acquire();
      if (scope.clock_) {
        scope.clock_->begin_lap();
      }
      for (const WeightId weight : step) {
        const bool is_mapped = !scope.streamer_->is_in_ring(weight);
        bytes_in_cache_ += is_mapped ? bytes_of(weight) : 0;
        any_mapped = any_mapped || is_mapped;
      }
      if (any_mapped) {
        placing_.mapped->check_unchanged();
        scope.reads_mapping_ = true;
      }
    } catch (const Error&) {
      scope.failure_ = std::current_exception();
      throw;
    }
    for (std::size_t i = 0; i < step.size(); ++i) {
      storages[i] = make_leased(lease, scope.streamer_->address(step[i]), bytes_of(step[i]), device_);
    }
  }
  std::vector<LeasedWeight> leased;
  for (std::size_t i = 0; i < placeholders.size(); ++i) {
    const auto streamed = std::find(step.begin(), step.end(), placing_.first_in_ring + weights[i]);
    leased.emplace_back(streamed == step.end() ? resident_tensor(weights[i], placeholders[i])
                                               : tensor_on(storages[streamed - step.begin()], placeholders[i]));
  }
  return leased;
}

} // namespace offload
