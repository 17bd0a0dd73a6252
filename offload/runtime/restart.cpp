#include <offload/runtime/restart.h>

#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <mutex>

#include <offload/error.h>
#include <offload/tensor/values.h>

namespace offload {

Restart::Restart(const std::vector<c10::IValue>& arguments, std::optional<StateSnapshot> state,
                 const std::vector<at::Generator>& generators)
    : state_(std::move(state)) {
  for (const c10::IValue& argument : arguments) {
    visit_objects(argument, [&](const c10::IValue&) { has_objects_ = true; });
    visit_tensors("", argument, [&](const std::string&, const at::Tensor& tensor) {
      if (!tensor.defined()) {
        return;
      }
      if (tensor.is_inference()) {
        copies_.emplace_back(tensor, tensor.clone());
      } else {
        versions_.emplace_back(tensor, tensor._version());
      }
    });
    visit_containers(argument,
                     [&](const c10::IValue& container) { containers_.emplace_back(container, copy_of(container)); });
  }
  for (const at::Generator& generator : generators) {
    at::Generator own = generator;
    const std::lock_guard lock(own.mutex());
    generators_.emplace_back(own, own.get_state());
  }
}

void Restart::restore() {
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
  {
    const c10::InferenceMode writes_what_has_no_version;
    for (const auto& [tensor, before] : copies_) {
      tensor.copy_(before);
    }
  }
  const bool written = std::any_of(versions_.begin(), versions_.end(),
                                   [](const auto& seen) { return seen.first._version() != seen.second; });
  if (written || has_objects_) {
    throw Error(
        std::string("the call needed more memory than it could have, and ") +
        (written ? "had written to one of its arguments" : "may have written to an object among its arguments") +
        ": it can not be made again unseen. Name such a call in example_calls, or raise vram_budget");
  }
}

} // namespace offload
