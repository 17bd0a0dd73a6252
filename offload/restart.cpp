#include <offload/restart.h>

#include <mutex>

#include <offload/error.h>
#include <offload/graph/values.h>

namespace offload {

namespace {

/// The elements of a list or dict, in one of their own.
c10::IValue copy_of(const c10::IValue& container) {
  return container.isGenericDict() ? c10::IValue(container.toGenericDict().copy())
                                   : c10::IValue(container.toList().copy());
}

/// Puts the elements of `before` into `container`.
void refill(const c10::IValue& container, const c10::IValue& before) {
  if (container.isGenericDict()) {
    auto dict = container.toGenericDict();
    dict.clear();
    for (const auto& entry : before.toGenericDict()) {
      dict.insert(entry.key(), entry.value());
    }
    return;
  }
  auto list = container.toList();
  list.clear();
  list.append(before.toList());
}

} // namespace

Restart::Restart(const std::vector<c10::IValue>& inputs, const Holders* state,
                 const std::vector<at::Generator>& generators) {
  for (const c10::IValue& input : inputs) {
    if (input.isObject()) {
      continue; // the module that holds constants
    }
    visit_tensors("", input, [&](const std::string&, const at::Tensor& tensor) {
      if (tensor.defined() && !tensor.is_inference()) { // those of InferenceMode have no version
        versions_.emplace_back(tensor, tensor._version());
      }
    });
    visit_containers(input,
                     [&](const c10::IValue& container) { containers_.emplace_back(container, copy_of(container)); });
  }
  for (const at::Generator& generator : generators) {
    at::Generator own = generator;
    const std::lock_guard lock(own.mutex());
    generators_.emplace_back(own, own.get_state());
  }
  if (state) {
    state_.emplace(*state);
  }
}

void Restart::restore() {
  for (const auto& [tensor, version] : versions_) {
    if (tensor._version() != version) {
      throw Error(
          "the call needed more memory than it could have after it had written to one of its arguments: it can "
          "not be made again unseen. Name such a call in example_calls, or raise vram_budget");
    }
  }
  for (const auto& [container, before] : containers_) {
    refill(container, before);
  }
  for (auto& [generator, before] : generators_) {
    const std::lock_guard lock(generator.mutex());
    generator.set_state(before);
  }
  if (state_) {
    state_->restore();
  }
}

} // namespace offload
