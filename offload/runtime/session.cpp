#include <offload/runtime/session.h>

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <utility>

#include <offload/bytes.h>
#include <offload/core/host_limits.h>
#include <offload/device/cuda_calls.h>
#include <offload/runtime/outside_bytes.h>

namespace offload {

namespace {

constexpr std::uint64_t kMargin = 512_MiB; // left free by a default budget

std::uint64_t free_bytes(c10::Device device) {
  if (device.is_cpu()) {
    return available_host_bytes();
  }
  std::size_t free = 0;
  std::size_t total = 0;
  const c10::cuda::CUDAGuard guard(device);
  check_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return free;
}

std::uint64_t less(std::uint64_t bytes, std::uint64_t taken) { return bytes - std::min(bytes, taken); }

} // namespace

Session::Session(const torch::jit::Module& module, const Options& options, const std::optional<MachineProfile>& machine,
                 Purpose purpose, Owner owner)
    : model_(examine(module, options, machine, host_promise_)),
      may_overflow_(!options.pinned_budget && !options.host_budget),
      device_promise_(model_.device.is_cuda() ? model_.device.index() : kHost),
      state_(model_, first_planned_method(model_.program, options)) {
  if (purpose == Purpose::plan) {
    prepare_device(model_.device); // what a run would take of the device, the plan names
  }
  choose_budget(options);
  state_.set_outside(outside_bytes(model_.device));
  const std::uint64_t vram = state_.given().vram;
  const DeviceBudget known = state_.budget();
  if (options.example_calls.empty() ||
      vram < known.minimum() - known.least_reserve()) { // else examples show what activations take
    state_.require_minimum(vram);
  }
  Displaced displaced;
  try {
    if (purpose == Purpose::run || !options.example_calls.empty()) {
      transport_ = std::make_unique<Transport>(model_.device, model_.lanes, model_.host.staging);
      adopted_ = adopt_weights(model_, *transport_, owner, options.progress, displaced);
      for (const ExampleCall& call : options.example_calls) {
        measure_example(call);
      }
      state_.require_minimum(vram);
    }
    if (purpose == Purpose::plan) {
      adopted_.reset();
      transport_.reset();
    }
    if (purpose == Purpose::plan || !options.example_calls.empty()) {
      replan();
    } else {
      Plan plan = state_.make_plan(); // by what is known so far
      device_promise_.set(state_.promised_bytes(plan.residency, plan.callers.lanes));
      state_.set_plan(std::move(plan), Readiness::unknown);
    }
  } catch (...) {
    adopted_.reset();
    transport_.reset();
    displaced.put_back();
    throw;
  }
  if (purpose == Purpose::plan) {
    displaced.put_back();
  }
}

/// By default what is free and promised to nobody, less some for others; but what is free as far as the smallest
/// budget.
void Session::choose_budget(const Options& options) {
  if (!options.vram_budget && model_.device.is_cuda()) {
    prepare_device(model_.device);                 // before others are kept from taking memory
    c10::cuda::CUDACachingAllocator::emptyCache(); // it gives back what is asked for in vain: it counts as free
  }
  device_promise_.set_by([&](std::uint64_t outstanding) {
    GivenBudget given;
    if (options.vram_budget) {
      given.vram = *options.vram_budget;
    } else {
      // What is used where it is takes no more.
      const std::uint64_t in_module =
          model_.host.in_module + (model_.device.is_cpu() && !model_.file ? model_.fixed : 0);
      given.free = in_module + less(free_bytes(model_.device), outstanding);
      given.vram = std::max(less(*given.free, kMargin), std::min(*given.free, state_.budget().minimum()));
    }
    state_.give(given);
    return state_.promised_bytes(all_resident(*model_.weights), 1);
  });
}

/// What stands in the module goes before the memory that it stands in.
Session::~Session() { model_.program = {}; }

/// A call has its lane until it ends, and whoever wants to be alone waits for that.
void Session::require_no_call_around(const char* wanted) const {
  if (adopted_->executor->is_within_call()) {
    throw Error(std::string(wanted) + " of a module from within a call of it would wait for that call for ever: " +
                "do it when the call has returned, or with another module");
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
    if (!adopted_->executor->is_within_call()) {
      alone.emplace(gate());
    }
    lanes().synchronize();
  }
  return adopted_->placed->attr(name);
}

Stats Session::stats() const {
  Stats stats;
  transport_->report(stats);
  engine().report(stats);
  stats.outside_bytes = outside_bytes(model_.device);
  state_.report(stats);
  return stats;
}

c10::IValue Session::run_method(const std::string& name, std::vector<c10::IValue> inputs, const Kwargs& kwargs) {
  require_no_call_around("a call");
  const Request request = make_request(model_.program, model_.device, name, std::move(inputs), kwargs);
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
  const auto expected_by_plan = [&] {
    return streamed_sequence(model_.pass_of(model_.static_steps(request.method)), state_.residency(),
                             engine().first_in_ring());
  };
  const Executor::How how{.expected = sequences_.expected(request.method, request.shape, expected_by_plan),
                          .overflow = overflow,
                          .is_known_to_fit = state_.knows(request.shape),
                          .trace = trace};
  Made made = adopted_->executor->run(lane, request, how);
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
  const SequencePtr next =
      made.executed == *how.expected ? how.expected : std::make_shared<const Sequence>(std::move(made.executed));
  sequences_.record(request.method, request.shape, next);
  state_.record_call();
  if (!trace) {
    transport_->streamer()->expect(lane, next);
  }
  return made;
}

/// Beside other calls, once it is this one's turn. None when something has to be planned first: for all calls, or since
/// this one takes more than the plan leaves it.
std::optional<c10::IValue> Session::call_in_turn(const Request& request, std::uint64_t& exhausted_room) {
  state_.record_callers(gate().callers() + 1);
  for (const bool takes_all : {false, true}) {
    const auto came = std::chrono::steady_clock::now();
    const LaneLock held(gate(), lanes().callers_stream(),
                        takes_all ? ~std::uint64_t{0} : state_.expected_memory(request.shape));
    state_.record_turn(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - came).count());
    const std::uint64_t room = gate().room();
    if (state_.readiness() == Readiness::placed && has_lost_places()) {
      state_.set_readiness(Readiness::measured); // a call ran out of host memory: weights have to be placed anew
    }
    if (state_.readiness() != Readiness::placed || room <= exhausted_room) {
      return std::nullopt;
    }
    Made made = make_call(held.lane(), request, Lanes::Overflow::stop, nullptr);
    if (made.output) {
      return std::move(made.output);
    }
    if (made.memory.by_device) {
      state_.refuse(request.shape, made.memory, made.ended);
    }
    if (takes_all || model_.lanes == 1) {
      exhausted_room = room;
      break;
    } // else others had what was missing: once more, when it has all
  }
  return std::nullopt;
}

/// With nobody beside it. None when the call can go on in turn, since others have planned or this has.
std::optional<c10::IValue> Session::call_exclusive(const Request& request, std::uint64_t exhausted_room) {
  const ExclusiveLaneLock alone(gate());
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
  if (readiness == Readiness::placed && gate().room() > exhausted_room) {
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
