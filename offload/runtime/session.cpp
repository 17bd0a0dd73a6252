#include <offload/runtime/session.h>

#include <limits>
#include <map>
#include <utility>

#include <offload/bytes.h>
#include <offload/plan/recorded_call.h>
#include <offload/runtime/outside_bytes.h>
#include <offload/runtime/state.h>

namespace offload {

Session::Session(const torch::jit::Module& module, const Options& options, const std::optional<MachineProfile>& machine)
    : model_(examine(module, options, machine, host_promise_)),
      may_overflow_(!options.pinned_budget && !options.host_budget),
      state_(model_, first_planned_method(model_.program, options)) {}

/// What stands in the module goes before the memory that it stands in.
Session::~Session() { model_.program = {}; }

/// A call has its lane until it ends, and whoever wants to be alone waits for that.
void Session::require_no_call_around(const char* wanted) const {
  if (is_within_call_on(*transport_)) {
    throw Error(std::string(wanted) + " of a module from within a call of it, or of one in its pool, would wait for " +
                "that call for ever: do it when the call has returned, or with another module");
  }
}

const c10::FunctionSchema& Session::schema(const std::string& name) const {
  return find_method(model_.program, name).schema;
}

/// Waits for calls only where they may be writing it. An operator of such a call, which is the only one then, finds
/// what has been written so far.
c10::IValue Session::attr(const std::string& name) const {
  std::optional<ExclusiveLaneLock> alone;
  if (model_.program.writes_state) {
    if (!is_within_call_on(*transport_)) {
      alone.emplace(gate());
    }
    lanes().synchronize();
  }
  return adopted_->placed->attr(name);
}

Stats Session::counted() const {
  Stats stats;
  report_streamed(stats);
  engine().report(stats);
  state_.report(stats);
  return stats;
}

Stats Session::stats() const {
  Stats stats = counted();
  stats.outside_bytes = outside_bytes(model_.device);
  return stats;
}

c10::IValue Session::run_method(const std::string& name, std::vector<c10::IValue> inputs, const Kwargs& kwargs) {
  require_no_call_around("a call");
  return call(make_request(model_.program, model_.device, name, std::move(inputs), kwargs));
}

Made Session::make_call(int lane, const Request& request, Lanes::Overflow overflow, std::vector<LeasedStep>* trace) {
  const auto began = std::chrono::steady_clock::now();
  const auto expected_by_plan = [&] {
    return streamed_sequence(model_.pass_of(model_.static_steps(request.method)), state_.residency(),
                             engine().first_in_ring());
  };
  const std::uint64_t admitted = gate().admitted();
  const auto is_alone = [&] { return gate().callers() == 1 && gate().admitted() == admitted; };
  const bool is_timed = !trace && is_alone() && !knows_laps() && state_.begin_alone(request.method, request.shape);
  const Executor::How how{.expected = sequences_.expected(request.method, request.shape, expected_by_plan),
                          .overflow = overflow,
                          .is_known_to_fit = state_.knows(request.shape),
                          .trace = trace,
                          .is_timed = is_timed};
  if (is_timed) {
    transport_->streamer()->mark_copies();
  }
  Made made = adopted_->executor->run(lane, request, how);
  std::optional<std::vector<MarkedBatch>> marked = transport_->streamer()->take_marked();
  record_peak();
  if (model_.device.is_cuda()) {
    state_.record_memory(request.shape, made.memory, made.ended, lanes().state(), gate().room());
  }
  if (made.lost) {
    std::rethrow_exception(made.lost);
  }
  if (!made.output) {
    return made;
  }
  if (made.clock && is_alone()) {
    const std::lock_guard lock(timed_mutex_);
    timed_ = {request.method, request.shape, state_.residency(), std::move(made.clock), std::move(marked)};
  }
  const SequencePtr next = made.streamed.steps == *how.expected
                               ? how.expected
                               : std::make_shared<const Sequence>(std::move(made.streamed.steps));
  sequences_.record(request.method, request.shape, next);
  state_.record_call(made.streamed.counts,
                     std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - began).count());
  if (!trace) {
    if (is_alone() && state_.times_next(request.method, request.shape)) {
      transport_->streamer()->mark_copies(); // what is brought ahead is part of its picture
    }
    transport_->streamer()->expect(lane, next, engine().first_in_ring());
  }
  return made;
}

bool Session::knows_laps() const {
  const std::lock_guard lock(timed_mutex_);
  return timed_.has_value();
}

bool Session::record_laps() {
  std::optional<TimedCall> call;
  {
    const std::lock_guard lock(timed_mutex_);
    if (!timed_ || !timed_->clock->is_over()) {
      return false;
    }
    call.swap(timed_);
  }
  bool is_one = false;
  try {
    is_one = state_.record_laps(call->method, call->shape, call->residency, call->clock->laps());
    if (is_one && call->copies) {
      Timeline timeline = draw(*call);
      const std::lock_guard lock(timed_mutex_);
      timeline_ = std::move(timeline);
    }
  } catch (const std::exception&) { // nobody will ever know what it took, or see it
  }
  return is_one;
}

Timeline Session::draw(const TimedCall& call) const {
  const WeightId first = engine().first_in_ring();
  RecordedCall recorded{call.clock->times(), {}};
  for (const MarkedBatch& batch : *call.copies) {
    const Arrival& arrival = *batch.arrival;
    if (!arrival.issued.load(std::memory_order_acquire) || !arrival.began || !arrival.began->is_reached()) {
      continue; // they were for a later call
    }
    const bool is_over = arrival.came && arrival.came->is_reached();
    RecordedCopies copies{{},
                          {call.clock->us_of(*arrival.began),
                           is_over ? call.clock->us_of(*arrival.came) : std::numeric_limits<double>::infinity()}};
    for (const Fetch& fetch : batch.fetches) {
      if (fetch.weight >= first && fetch.weight - first < model_.count()) { // else another module's
        copies.weights.push_back(fetch.weight - first);
      }
    }
    if (!copies.weights.empty()) {
      recorded.copies.push_back(std::move(copies));
    }
  }
  const Observations observed = state_.observations();
  const auto measured = observed.measured().find(call.method);
  return measured == observed.measured().end()
             ? Timeline()
             : timeline_of(recorded, model_.pass_of(measured->second), call.residency);
}

std::optional<Timeline> Session::recorded_timeline() {
  if (record_laps()) {
    state_.predict_again(PlanState::Then::nothing);
  }
  const std::lock_guard lock(timed_mutex_);
  return timeline_;
}

void Session::make_example(const ExampleCall& call, const std::function<void(const Request& request)>& make) {
  std::optional<StateSnapshot> before;
  if (model_.program.writes_state) {
    before.emplace(model_.program.holders, [](const at::Tensor&) { return false; });
  }
  const auto put_back = [&] {
    if (before) {
      lanes().synchronize();
      before->restore();
    }
  };
  try {
    const Request request = make_request(model_.program, model_.device, call.method, call.inputs, call.kwargs);
    make(request);
    state_.pin(request.shape);
  } catch (...) {
    put_back();
    throw;
  }
  put_back();
}

void Session::record_placed(const Residency& residency) {
  std::map<std::string, SequencePtr> sequences;
  const Observations observed = state_.observations();
  for (const auto& [name, steps] : observed.measured()) {
    sequences[name] =
        std::make_shared<const Sequence>(streamed_sequence(model_.pass_of(steps), residency, engine().first_in_ring()));
  }
  sequences_.reset(std::move(sequences));
  const Stats now = counted();
  const std::lock_guard lock(placed_mutex_);
  placed_ = {now, std::chrono::steady_clock::now()};
}

} // namespace offload
