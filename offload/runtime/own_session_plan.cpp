// How a module finds out what its calls need, and is planned and placed; see own_session.h.

#include <algorithm>
#include <exception>
#include <utility>

#include <offload/error.h>
#include <offload/runtime/own_session.h>

namespace offload {

/// Calls may take what is left beside what is placed; on a host whatever they need. The caller holds all lanes.
void OwnSession::place(const Residency& residency, PlacedModule::Leased leased) {
  lanes().release();
  transport_->stop();
  adopted_->placed->install(residency, leased);
  transport_->start(engine().ring());
  gate().set_room(model_.device.is_cuda() ? state_.budget().room(engine().placed_bytes()) : ~std::uint64_t{0});
}

/// Nothing is placed any more. The caller holds all lanes.
void OwnSession::clear() {
  transport_->stop();
  adopted_->placed->clear();
}

/// What a measuring call runs with. On a device little more than the smallest ring, or just that, since activations
/// want room as well; on the host as it will be planned, as far as the graph shows, so that what stays is brought once.
Residency OwnSession::residency_to_measure(Ring ring) const {
  if (model_.device.is_cpu()) {
    return state_.make_plan().residency;
  }
  const DeviceBudget budget = state_.budget();
  const std::uint64_t least = align_up(budget.least_ring, budget.unit);
  const std::uint64_t taken = model_.fixed + least + budget.least_reserve();
  const std::uint64_t spare = ring == Ring::least ? 0 : (budget.vram - std::min(budget.vram, taken)) / 2;
  const std::uint64_t weights = bytes_of(all_resident(*model_.weights));
  const std::uint64_t more = std::min({spare, 8 * kBatchBytes, weights - std::min(weights, least)});
  return {std::vector<std::uint64_t>(model_.count()), least + more / kDeviceGranularity * kDeviceGranularity};
}

/// A call that shows what calls need: with a ring that streams well, and where that leaves too little for activations,
/// again with the smallest. The caller holds all lanes.
c10::IValue OwnSession::measure(const Request& request) {
  for (const Ring ring : {Ring::ample, Ring::least}) {
    Residency residency = residency_to_measure(ring);
    const bool is_last = ring == Ring::least || residency.ring_bytes == residency_to_measure(Ring::least).ring_bytes;
    place(residency, PlacedModule::Leased::all);
    state_.set_residency(std::move(residency));
    sequences_.reset({});
    std::vector<LeasedStep> trace;
    // What it takes is to be known to its end before it is refused.
    const bool lends = is_last && may_overflow_;
    const Lanes::Overflow overflow = lends ? Lanes::Overflow::lend : Lanes::Overflow::stop;
    Made made = make_call(0, request, overflow, &trace);
    if (is_last && !made.output && made.memory.bytes <= gate().room() && !made.memory.by_device) {
      trace.clear(); // it has room where what libraries work in is there from the beginning, as it is from now on
      lanes().release();
      made = make_call(0, request, overflow, &trace);
    }
    if (made.output) {
      state_.record_steps(request.method, request.shape, std::move(trace));
      return std::move(*made.output);
    }
    if (is_last || made.memory.by_device) {
      state_.refuse(request.shape, made.memory, made.ended);
    }
  }
  throw Error("a call was neither made nor refused"); // not reached: the last ring does one or the other
}

/// Plans, if that has not been `made`, and places accordingly if there is an engine. Callers hold all lanes, or are
/// alone. Where it throws, nothing is placed, and the next call tries again; but where it is since the file has
/// changed, all is as it was.
void OwnSession::replan(std::optional<Plan> made) {
  if (adopted_) {
    engine().check_file();
  }
  state_.set_readiness(Readiness::measured);
  Plan best = made ? std::move(*made) : state_.make_plan();
  const std::uint64_t promised = state_.promised_bytes(best.residency, best.callers.lanes);
  device_promise_.raise_to(promised);
  if (adopted_) {
    place(best.residency, PlacedModule::Leased::streamed);
    record_placed(best.residency);
    gate().set_usual_lanes(best.callers.count); // one caller keeps to what is ahead on one lane, whatever its streams
    record_peak();
  }
  device_promise_.set(promised);
  state_.set_outside(outside());
  state_.set_plan(std::move(best), adopted_ ? Readiness::placed : Readiness::measured);
}

/// If another plan would be better than what is placed. It is simulated while others call.
void OwnSession::replan_beside_calls() {
  const auto changes = state_.begin_replan();
  if (!changes) {
    return;
  }
  Plan best = state_.make_plan();
  const ExclusiveLaneLock alone(gate());
  if (state_.readiness() != Readiness::placed) {
    return; // others have begun anew
  }
  if (state_.changes() != *changes) {
    state_.set_readiness(Readiness::outdated); // it is out of date itself
    return;
  }
  try {
    replan(std::move(best));
  } catch (const std::exception&) { // of the file, or no memory: the call comes to it, and reports
  }
}

void OwnSession::record_peak() {
  const std::uint64_t now = model_.fixed + engine().placed_bytes() + lanes().held();
  if (model_.device.is_cuda()) {
    device_promise_.raise_to(now); // by default calls may have taken more than was planned
  }
  state_.record_peak(now);
}

void OwnSession::release() {
  require_no_call_around("release()");
  const ExclusiveLaneLock alone(gate());
  clear();
  lanes().release();
  device_promise_.set(model_.device.is_cuda() ? model_.fixed + lanes().held() : 0);
  if (state_.is_placed()) {
    state_.set_readiness(Readiness::measured);
  }
}

void OwnSession::set_vram_budget(std::uint64_t bytes) {
  require_no_call_around("a new budget");
  const ExclusiveLaneLock alone(gate());
  state_.require_minimum(bytes);
  engine().check_file();
  const GivenBudget before = state_.given();
  state_.give({bytes, std::nullopt}); // from here on others see it
  if (state_.readiness() == Readiness::unknown) {
    clear();
    Plan best = state_.make_plan();
    device_promise_.set(state_.promised_bytes(best.residency, best.callers.lanes));
    state_.set_plan(std::move(best), Readiness::unknown);
    return; // the next call measures, and plans
  }
  try {
    replan();
  } catch (...) {
    state_.give(before);
    replan(); // what fitted before; if even that has gone, its error says so
    throw;
  }
}

} // namespace offload
