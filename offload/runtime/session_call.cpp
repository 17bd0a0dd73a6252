// How a module is called; see session.h.

#include <utility>

#include <offload/runtime/arguments.h>
#include <offload/runtime/session.h>

namespace offload {

c10::IValue Session::run_method(const std::string& name, std::vector<c10::IValue> inputs, const Kwargs& kwargs) {
  require_no_call_around("a call");
  Request request{
      name, make_stack(model_.program, find_method(model_.program, name), model_.device, std::move(inputs), kwargs), 0};
  request.shape = shape_of_call(name, request.stack);
  std::uint64_t exhausted_room = 0; // all the room for calls there was when it was stopped; 0 while it was not
  while (true) {
    if (auto output = call_in_turn(request, exhausted_room)) {
      return std::move(*output);
    }
    if (exhausted_room > 0) {
      state_.refuse_again(request.shape); // without being measured again
    }
    if (auto output = call_exclusive(request, exhausted_room)) {
      return std::move(*output);
    }
  }
}

/// Makes a call, and records what it has shown. `trace` is given for calls that are measured.
Made Session::make_call(int lane, const Request& request, Lanes::Overflow overflow, std::vector<LeasedStep>* trace) {
  Executor::How how;
  how.expected = sequences_.expected(request.method, request.shape, [&] {
    return streamed_sequence(model_.pass_of(model_.static_steps(request.method)), state_.residency());
  });
  how.overflow = overflow;
  how.trace = trace;
  how.is_known_to_fit = state_.knows(request.shape);
  Made made = adopted_->executor->run(lane, request, how);
  record_peak();
  if (model_.device.is_cuda()) {
    state_.record_memory(request.shape, made.memory, made.ended, engine().lanes().state(), gate_->room());
  }
  if (made.lost) {
    std::rethrow_exception(made.lost);
  }
  if (!made.output) {
    return made;
  }
  const SequencePtr next =
      made.executed == *how.expected ? how.expected : std::make_shared<const Sequence>(std::move(made.executed));
  sequences_.record(request.method, request.shape, next);
  state_.record_call();
  if (!trace) {
    engine().streamer().expect(lane, next);
  }
  return made;
}

/// Beside other calls, once it is this one's turn. None when something has to be planned first: for all calls, or since
/// this one takes more than the plan leaves it.
std::optional<c10::IValue> Session::call_in_turn(const Request& request, std::uint64_t& exhausted_room) {
  for (const bool takes_all : {false, true}) {
    const LaneLock held(*gate_, engine().lanes().callers_stream(),
                        takes_all ? ~std::uint64_t{0} : state_.expected_memory(request.shape));
    const std::uint64_t room = gate_->room();
    if (state_.readiness() == Readiness::placed && has_lost_places()) {
      state_.set_readiness(Readiness::measured); // a call ran out of host memory: weights have to be placed anew
    }
    if (state_.readiness() != Readiness::placed || room <= exhausted_room) {
      return std::nullopt;
    }
    const bool has_all = takes_all || model_.lanes == 1;
    Made made = make_call(held.lane(), request, Lanes::Overflow::stop, nullptr);
    if (made.output) {
      return std::move(made.output);
    }
    if (made.memory.by_device) {
      state_.refuse(request.shape, made.memory, made.ended);
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
std::optional<c10::IValue> Session::call_exclusive(const Request& request, std::uint64_t exhausted_room) {
  const ExclusiveLaneLock alone(*gate_);
  const Readiness readiness = state_.readiness();
  if (readiness == Readiness::measured) {
    try {
      replan();
    } catch (const ArchiveError&) {
      if (has_lost_places()) {
        throw;
      }
      state_.keep_plan(); // since nothing else can be placed
    }
    return std::nullopt;
  }
  if (readiness == Readiness::placed && gate_->room() > exhausted_room) {
    return std::nullopt;
  }
  engine().check_file(); // what is placed for other calls stays, then
  Observations before = state_.observations();
  c10::IValue output;
  try {
    output = measure(request);
    state_.require_minimum(state_.given().vram);
  } catch (...) {
    state_.restore(std::move(before), request.shape);
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
