#pragma once

#include <ATen/core/function_schema.h>
#include <ATen/core/ivalue.h>
#include <ATen/core/stack.h>
#include <c10/core/Device.h>
#include <torch/csrc/jit/runtime/operator.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include <offload/graph/shapes.h>
#include <ops/lease.h>

namespace offload {

/// True for a tensor that is small enough for its values to be followed.
bool may_be_known(const at::Tensor& tensor);

/// True for tensors that have sizes only, or that may get them.
bool is_sized(const at::Tensor& tensor);

/// The same on the device meta.
at::Tensor without_values(const at::Tensor& tensor);

/// A copy of `value` with `replace(tensor)` in the place of every tensor.
c10::IValue copy_with(const c10::IValue& value, const std::function<at::Tensor(const at::Tensor&)>& replace);

/// True for a tensor, an optional one, and lists of either.
bool names_tensors(const c10::Argument& argument);

/// Bytes of tensors as long as they live.
class LiveBytes {
 public:
  LiveBytes() : counts_(std::make_shared<Counts>()) {}

  /// From now on until its storage ends. What has been added is not added again.
  void add(const at::Tensor& tensor) {
    if (!is_sized(tensor) || tensor.storage().data_ptr().get_deleter() == &end) {
      return;
    }
    const std::uint64_t bytes = (tensor.storage().nbytes() + kUnit - 1) / kUnit * kUnit;
    auto context = std::make_unique<Context>(Context{counts_, bytes, {}});
    counts_->now += bytes;
    counts_->peak = std::max(counts_->peak, counts_->now);
    void* data = tensor.is_meta() ? nullptr : tensor.storage().mutable_data();
    Context* owner = context.release();
    owner->memory = tensor.storage().set_data_ptr(at::DataPtr(data, owner, &end, tensor.device()));
  }
  std::uint64_t peak() const { return counts_->peak; }

 private:
  static constexpr std::uint64_t kUnit = 512;
  struct Counts {
    std::uint64_t now = 0;
    std::uint64_t peak = 0;
  };
  struct Context {
    std::shared_ptr<Counts> counts;
    std::uint64_t bytes;
    at::DataPtr memory; // of a tensor that has values
  };
  static void end(void* context) {
    const std::unique_ptr<Context> ended(static_cast<Context*>(context));
    ended->counts->now -= ended->bytes;
  }

  std::shared_ptr<Counts> counts_;
};

/// One call on sizes.
class SizesOfCall final : public Lender {
 public:
  std::vector<LeasedWeight> lease(c10::ArrayRef<at::Tensor> placeholders, const ProductSize& size) override {
    LeasedStep step{{}, size.flops, /*rows_only=*/false, size.rows, size.bytes};
    std::vector<LeasedWeight> leased;
    for (const at::Tensor& placeholder : placeholders) {
      const WeightId weight = placeholder_record(placeholder)->weight;
      if (std::find(step.weights.begin(), step.weights.end(), weight) == step.weights.end()) {
        step.weights.push_back(weight);
      }
      leased.emplace_back(without_values(placeholder));
    }
    call.steps.push_back(std::move(step));
    return leased;
  }

  at::Tensor lease_rows(const at::Tensor& placeholder, std::uint64_t) override {
    call.steps.push_back({.weights = {placeholder_record(placeholder)->weight}, .rows_only = true});
    return without_values(placeholder);
  }

  bool is_known(const at::Tensor& tensor) const {
    return tensor.defined() && !tensor.is_meta() && !placeholder_record(tensor) &&
           (!is_sized(tensor) || written_.count(tensor.storage().unsafeGetStorageImpl()) == 0);
  }

  /// Something without values was written into it.
  void lose_values(const at::Tensor& tensor) {
    if (is_known(tensor) && is_sized(tensor)) {
      written_.emplace(tensor.storage().unsafeGetStorageImpl(), tensor.storage());
    }
  }

  ShapedCall call;
  LiveBytes live;
  std::exception_ptr failure; // the interpreter gives errors of operators another type

  static thread_local SizesOfCall* current;

 private:
  std::unordered_map<const void*, c10::Storage> written_;
};

/// What an `offload::sized` stands for.
struct Sized {
  const c10::FunctionSchema& schema() const { return operation->schema(); }

  std::shared_ptr<torch::jit::Operator> operation;
  std::string where;
  bool is_random;
};

/// Executes the operator for the thread's SizesOfCall: takes its arguments from the stack, and leaves its outputs. What
/// it throws is in SizesOfCall::failure, too.
void run_sized(const Sized& sized, torch::jit::Stack& stack);

} // namespace offload
