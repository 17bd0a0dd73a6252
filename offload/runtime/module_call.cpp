// How a module is called; see module_impl.h.

#include <utility>

#include <offload/runtime/arguments.h>
#include <offload/runtime/module_impl.h>

namespace offload {

/// A call has its lane until it ends, and whoever wants to be alone waits for that.
void Module::Impl::require_no_call_around(const char* wanted) const {
  if (adopted_->executor->is_within_call()) {
    throw Error(std::string(wanted) + " of a module from within a call of it would wait for that call for ever: " +
                "do it when the call has returned, or with another module");
  }
}

const c10::FunctionSchema& Module::Impl::schema(const std::string& name) const {
  return find_method(model_.program, name).schema;
}

c10::IValue Module::Impl::run_method(const std::string& name, std::vector<c10::IValue> inputs, const Kwargs& kwargs) {
  require_no_call_around("a call");
  Request request{
      name, make_stack(model_.program, find_method(model_.program, name), model_.device, std::move(inputs), kwargs), 0};
  request.shape = shape_of_call(name, request.stack);
  std::uint64_t exhausted_room = 0; // all the room for calls there was when it was stopped; 0 while it was not
  while (true) {
    if (auto output = call_in_turn(request, exhausted_room)) {
      return std::move(*output);
    }
    refuse_again(request, exhausted_room);
    if (auto output = call_exclusive(request, exhausted_room)) {
      return std::move(*output);
    }
  }
}

/// Makes a call, and records what it has shown. `trace` is given for calls that are measured.
Made Module::Impl::make_call(int lane, const Request& request, Lanes::Overflow overflow,
                             std::vector<LeasedStep>* trace) {
  Executor::How how;
  how.expected = sequences_.expected(request.method, request.shape, [&] {
    return streamed_sequence(model_.pass_of(model_.static_steps(request.method)), planned_.plan.residency);
  });
  how.overflow = overflow;
  how.trace = trace;
  {
    const std::lock_guard lock(mutex_);
    how.is_known_to_fit = observed_.activations.knows(request.shape);
  }
  Made made = adopted_->executor->run(lane, request, how);
  record_peak();
  record_memory(request, made.memory, made.ended);
  if (made.lost) {
    std::rethrow_exception(made.lost);
  }
  if (!made.output) {
    return made;
  }
  const SequencePtr next =
      made.executed == *how.expected ? how.expected : std::make_shared<const Sequence>(std::move(made.executed));
  sequences_.record(request.method, request.shape, next);
  {
    const std::lock_guard lock(mutex_);
    ++counts_.calls;
  }
  if (!trace) {
    engine().streamer().expect(lane, next);
  }
  return made;
}

void Module::Impl::record_memory(const Request& request, const CallMemory& memory, bool ended) {
  if (!model_.device.is_cuda()) {
    return;
  }
  const std::lock_guard lock(mutex_);
  const std::uint64_t before = observed_.activations.largest() + observed_.state();
  observed_.record_state(2 * engine().lanes().state()); // what a call writes anew is there beside what it replaces
  counts_.repeated += memory.overflowed ? 1 : 0;
  if (ended) {
    observed_.activations.record(request.shape, memory.bytes);
  } else if (refused_.count(request.shape) == 0) { // else it is known to fit in no way, and no plan is made for it
    observed_.activations.record_at_least(request.shape,
                                          std::min(memory.bytes, gate_->room())); // no plan leaves it more
  }
  if (observed_.activations.largest() + observed_.state() != before) {
    placement_.reset();
  }
  const bool much_less = observed_.activations.largest() < planned_.largest_call / 4 * 3;
  if (readiness_ == Readiness::placed && much_less && planned_.plan.residency.ring_bytes > 0) {
    readiness_ = Readiness::measured; // what was kept for larger calls becomes room for weights
  }
}

/// Beside other calls, once it is this one's turn. None when something has to be planned first: for all calls, or since
/// this one takes more than the plan leaves it.
std::optional<c10::IValue> Module::Impl::call_in_turn(const Request& request, std::uint64_t& exhausted_room) {
  for (const bool takes_all : {false, true}) {
    const std::uint64_t expected = [&] {
      const std::lock_guard lock(mutex_);
      return observed_.activations.expected(request.shape);
    }();
    const LaneLock held(*gate_, engine().lanes().callers_stream(), takes_all ? ~std::uint64_t{0} : expected);
    const std::uint64_t room = gate_->room();
    {
      const std::lock_guard lock(mutex_);
      if (readiness_ == Readiness::placed && (!engine().placed() || engine().streamer().lost())) {
        readiness_ = Readiness::measured; // a call ran out of host memory: weights have to be placed anew
      }
      if (readiness_ != Readiness::placed || room <= exhausted_room) {
        return std::nullopt;
      }
    }
    const bool has_all = takes_all || model_.lanes == 1;
    Made made = make_call(held.lane(), request, Lanes::Overflow::stop, nullptr);
    if (made.output) {
      return std::move(made.output);
    }
    if (made.memory.by_device) {
      refuse(request, made);
    }
    if (has_all) {
      exhausted_room = room;
      return std::nullopt;
    }
    // Others had what was missing: once more, when it has all.
  }
  return std::nullopt;
}

/// With nobody beside it. None when the call can go on in turn, since others have planned or this has.
std::optional<c10::IValue> Module::Impl::call_exclusive(const Request& request, std::uint64_t exhausted_room) {
  const ExclusiveLaneLock alone(*gate_);
  if (readiness_ == Readiness::measured) {
    try {
      replan();
    } catch (const ArchiveError&) {
      if (!engine().placed() || engine().streamer().lost()) {
        throw;
      }
      const std::lock_guard lock(mutex_);
      readiness_ = Readiness::placed; // what is placed goes on, since nothing else can be
      planned_.largest_call = observed_.activations.largest();
    }
    return std::nullopt;
  }
  if (readiness_ == Readiness::placed && gate_->room() > exhausted_room) {
    return std::nullopt;
  }
  engine().check_file(); // what is placed for other calls stays, then
  Observations before = observed_;
  c10::IValue output;
  try {
    output = measure(request);
    require_minimum(given_.vram);
  } catch (...) {
    const std::lock_guard lock(mutex_);
    before.record_state(observed_.state());
    observed_ = std::move(before); // allocates nothing
    observed_.activations.remove(request.shape);
    placement_.reset();
    readiness_ = observed_.measured().empty() ? Readiness::unknown : Readiness::measured;
    throw;
  }
  try {
    replan();
  } catch (const std::exception&) {
    // The output is right, and state was written: the next call tries again, and reports.
  }
  return output;
}

} // namespace offload
