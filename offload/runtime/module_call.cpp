// How a module is called; see module_impl.h.

#include <tuple>

#include <offload/runtime/arguments.h>
#include <offload/runtime/module_impl.h>

namespace offload {

/// A call has its lane until it ends, and whoever wants to be alone waits for that.
void Module::Impl::require_no_call_around(const char* wanted) const {
  if (executor_->is_within_call()) {
    throw Error(std::string(wanted) + " of a module from within a call of it would wait for that call for ever: " +
                "do it when the call has returned, or with another module");
  }
}

const c10::FunctionSchema& Module::Impl::schema(const std::string& name) const {
  return find_method(program_, name).schema;
}

c10::IValue Module::Impl::run_method(const std::string& name, std::vector<c10::IValue> inputs, const Kwargs& kwargs) {
  require_no_call_around("a call");
  Request request{name, make_stack(program_, find_method(program_, name), device_, std::move(inputs), kwargs), 0};
  request.shape = shape_of_call(name, request.stack);
  std::uint64_t too_little = 0; // room for activations in which it was stopped, though it had all of it
  while (true) {
    if (auto output = call_in_turn(request, too_little)) {
      return std::move(*output);
    }
    refuse_again(request, too_little);
    if (auto output = call_exclusive(request, too_little)) {
      return std::move(*output);
    }
  }
}

/// Makes a call, and records what it has shown. `trace` is given for calls that are measured.
Made Module::Impl::make_call(int lane, const Request& request, Lanes::Overflow overflow,
                             std::vector<LeasedStep>* trace) {
  Executor::How how{sequence_of(request.method, request.shape), overflow, false, trace};
  {
    const std::lock_guard lock(mutex_);
    how.is_known_to_fit = activations_.knows(request.shape);
  }
  Made made = executor_->run(lane, request, how);
  record_peak();
  record_memory(request, made.memory, made.ended);
  if (made.lost) {
    std::rethrow_exception(made.lost);
  }
  if (!made.output) {
    return made;
  }
  auto next = how.expected;
  {
    const std::lock_guard lock(mutex_);
    ++calls_;
    if (made.executed != *how.expected) {
      next = std::make_shared<const Sequence>(std::move(made.executed));
    }
    record_sequence(request.method, request.shape, next);
  }
  if (!trace) {
    engine_->streamer().expect(lane, next);
  }
  return made;
}

void Module::Impl::record_memory(const Request& request, const CallMemory& memory, bool ended) {
  if (!device_.is_cuda()) {
    return;
  }
  const std::lock_guard lock(mutex_);
  const std::uint64_t before = activations_.largest() + state_;
  // What a call writes anew is there beside what it replaces.
  state_ = std::max(state_, 2 * engine_->lanes().state());
  repeated_ += memory.overflowed ? 1 : 0;
  if (ended) {
    activations_.record(request.shape, memory.bytes);
  } else {
    activations_.record_at_least(request.shape, std::min(memory.bytes, gate_->room())); // no plan leaves it more
  }
  if (activations_.largest() + state_ != before) {
    placement_.reset();
  }
  const bool much_less = activations_.largest() < planned_for_ / 4 * 3;
  if (readiness_ == Readiness::placed && much_less && plan_.residency.ring_bytes > 0) {
    readiness_ = Readiness::measured; // what was kept for larger calls becomes room for weights
  }
}

/// Beside other calls, once it is this one's turn. None when something has to be planned first: for all calls, or since
/// this one takes more than the plan leaves it.
std::optional<c10::IValue> Module::Impl::call_in_turn(const Request& request, std::uint64_t& too_little) {
  for (const bool takes_all : {false, true}) {
    const std::uint64_t expected = [&] {
      const std::lock_guard lock(mutex_);
      return activations_.expected(request.shape);
    }();
    const LaneVisit visit(*gate_, engine_->lanes().callers_stream(), takes_all ? ~std::uint64_t{0} : expected);
    const std::uint64_t room = gate_->room();
    {
      const std::lock_guard lock(mutex_);
      if (readiness_ == Readiness::placed && (!engine_->placed() || engine_->streamer().lost())) {
        readiness_ = Readiness::measured; // a call ran out of host memory: weights have to be placed anew
      }
      if (readiness_ != Readiness::placed || room <= too_little) {
        return std::nullopt;
      }
    }
    const bool has_all = takes_all || lanes_ == 1;
    Made made = make_call(visit.lane(), request, Lanes::Overflow::stop, nullptr);
    if (made.output) {
      return std::move(made.output);
    }
    if (made.memory.by_device) {
      refuse(request, made);
    }
    if (has_all) {
      too_little = room;
      return std::nullopt;
    }
    // Others had what was missing: once more, when it has all.
  }
  return std::nullopt;
}

/// With nobody beside it. None when the call can go on in turn, since others have planned or this has.
std::optional<c10::IValue> Module::Impl::call_exclusive(const Request& request, std::uint64_t too_little) {
  const ExclusiveVisit alone(*gate_);
  if (readiness_ == Readiness::measured) {
    try {
      replan();
    } catch (const ArchiveError&) {
      if (!engine_->placed() || engine_->streamer().lost()) {
        throw;
      }
      const std::lock_guard lock(mutex_);
      readiness_ = Readiness::placed; // what is placed goes on, since nothing else can be
      planned_for_ = activations_.largest();
    }
    return std::nullopt;
  }
  if (readiness_ == Readiness::placed && gate_->room() > too_little) {
    return std::nullopt;
  }
  engine_->check_file(); // what is placed for other calls stays, then
  auto before = std::make_tuple(activations_, measured_, planned_method_);
  c10::IValue output;
  try {
    output = measure(request);
    require_minimum(vram_);
  } catch (...) {
    const std::lock_guard lock(mutex_);
    std::tie(activations_, measured_, planned_method_) = std::move(before); // allocates nothing
    activations_.remove(request.shape);
    placement_.reset();
    readiness_ = measured_.empty() ? Readiness::unknown : Readiness::measured;
    throw;
  }
  try {
    replan();
  } catch (const std::exception&) {
    // The output is right, and state was written: the next call tries again, and tells.
  }
  return output;
}

} // namespace offload
