#include <offload/runtime/own_session.h>

#include <c10/cuda/CUDACachingAllocator.h>

#include <algorithm>
#include <utility>

#include <offload/bytes.h>
#include <offload/graph/shapes.h>
#include <offload/runtime/free_bytes.h>
#include <offload/runtime/outside_bytes.h>

namespace offload {

OwnSession::OwnSession(const torch::jit::Module& module, const Options& options,
                       const std::optional<MachineProfile>& machine, Purpose purpose, Owner owner)
    : Session(module, options, machine), device_promise_(model_.device.is_cuda() ? model_.device.index() : kHost) {
  if (purpose == Purpose::plan) {
    prepare_device(model_.device); // what a run would take of the device, the plan names
  }
  choose_budget(options);
  state_.set_outside(outside());
  const std::uint64_t vram = state_.given().vram;
  const DeviceBudget known = state_.budget();
  if (options.example_calls.empty() ||
      vram < known.minimum() - known.least_reserve()) { // else examples show what activations take
    state_.require_minimum(vram);
  }
  Displaced displaced;
  try {
    if (model_.elsewhere) {
      std::for_each(options.example_calls.begin(), options.example_calls.end(),
                    [this](const ExampleCall& call) { record_by_sizes(call); });
      state_.require_minimum(vram);
    } else if (purpose == Purpose::run || !options.example_calls.empty()) {
      transport_ = std::make_shared<Transport>(model_.device, model_.lanes, model_.host.staging);
      adopted_ = adopt_weights(model_, *transport_, owner, options.progress, displaced);
      for (const ExampleCall& call : options.example_calls) {
        make_example(call, [this](const Request& request) { measure(request); });
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

/// Takes what the call would show from its sizes, as far as they tell. Workspaces are as large as on any card.
void OwnSession::record_by_sizes(const ExampleCall& example) {
  constexpr std::uint64_t kWorkspaces = 64_MiB; // of cuBLAS and cuBLASLt
  const Request request = make_request(model_.program, model_.device, example.method, example.inputs, example.kwargs);
  ShapedCall call;
  try {
    call = trace_shapes(model_.program, request.method, request.stack, c10::Device(c10::kCUDA, 0));
  } catch (const InputError& error) {
    state_.record_unsized(error.what());
    return;
  }
  const bool multiplies =
      std::any_of(call.ops.begin(), call.ops.end(), [](const ShapedOp& op) { return op.flops > 0; }) ||
      std::any_of(call.steps.begin(), call.steps.end(), [](const LeasedStep& step) { return step.flops > 0; });
  state_.record_sizes(request.method, request.shape, std::move(call.steps));
  state_.record_memory(request.shape,
                       {.bytes = align_up(call.peak_bytes, granularity(model_)) + (multiplies ? kWorkspaces : 0)},
                       /*ended=*/true, 0, ~std::uint64_t{0});
  state_.pin(request.shape);
}

/// Bytes of the device in no budget.
std::uint64_t OwnSession::outside() const {
  return model_.elsewhere ? kContextElsewhere : outside_bytes(model_.device);
}

/// By default what is free and promised to nobody, less some for others; but what is free as far as the smallest
/// budget. Of a machine that is not here, all is free but what a process takes.
void OwnSession::choose_budget(const Options& options) {
  const auto by_default = [this](std::uint64_t free) {
    return std::max(left_of(free, kMargin), std::min(free, state_.budget().minimum()));
  };
  if (model_.elsewhere) {
    const std::uint64_t free = left_of(model_.machine.device_memory_bytes, kContextElsewhere);
    state_.give(options.vram_budget ? GivenBudget{*options.vram_budget, std::nullopt}
                                    : GivenBudget{by_default(free), free});
    return;
  }
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
      given.free = in_module + left_of(free_bytes(model_.device), outstanding);
      given.vram = by_default(*given.free);
    }
    state_.give(given);
    return state_.promised_bytes(all_resident(*model_.weights), 1);
  });
}

Placement OwnSession::placement() {
  if (transport_ && record_laps()) {
    state_.predict_again(PlanState::Then::nothing);
  }
  return state_.placement();
}

c10::IValue OwnSession::call(const Request& request) {
  std::uint64_t exhausted_room = 0; // all the room for calls there was when it was stopped; 0 while it was not
  while (true) {
    if (record_laps()) {
      state_.predict_again(PlanState::Then::replan);
    }
    replan_beside_calls();
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

/// Beside other calls, once it is this one's turn. None when something has to be planned first: for all calls, or since
/// this one takes more than the plan leaves it.
std::optional<c10::IValue> OwnSession::call_in_turn(const Request& request, std::uint64_t& exhausted_room) {
  state_.record_callers(gate().callers() + 1);
  for (const bool takes_all : {false, true}) {
    const auto came = std::chrono::steady_clock::now();
    const LaneLock held(gate(), lanes().callers_stream(),
                        takes_all ? ~std::uint64_t{0} : state_.expected_memory(request.shape), LaneGate::kAll,
                        PriorityGuard::current());
    state_.record_turn(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - came).count());
    const std::uint64_t room = gate().room();
    if (state_.is_placed() && has_lost_places()) {
      state_.set_readiness(Readiness::measured); // a call ran out of host memory: weights have to be placed anew
    }
    if (!state_.is_placed() || room <= exhausted_room) {
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
std::optional<c10::IValue> OwnSession::call_exclusive(const Request& request, std::uint64_t exhausted_room) {
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
    if (model_.device.is_cuda() && !state_.knows(request.shape)) {
      return std::nullopt; // it may want more memory than there is
    }
    // Here, since before its turn came somebody might release what has just been placed, over and over.
    return make_call(0, request, Lanes::Overflow::stop, nullptr).output;
  }
  if (state_.is_placed() && gate().room() > exhausted_room) {
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
