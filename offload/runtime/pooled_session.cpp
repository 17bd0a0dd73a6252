#include <offload/runtime/pooled_session.h>

#include <utility>

#include <offload/bytes.h>

namespace offload {

PooledSession::PooledSession(const torch::jit::Module& module, const Options& options, Owner owner,
                             const std::string& name)
    : Session(module, options.pool->manager()->options_for(options), std::nullopt), manager_(options.pool->manager()) {
  if (is_within_call_on(*manager_->transport())) {
    throw Error("a module is loaded into a pool from within a call of one that lives there, and would wait for that " +
                std::string("call for ever: load it when the call has returned"));
  }
  if (model_.program.writes_state) {
    throw InputError(name + " writes its own state, and such a model can not live in a pool: give it a vram_budget");
  }
  Displaced displaced;
  try {
    {
      const PoolManager::Turn turn(*manager_);
      manager_->admit(*this, name);
      transport_ = manager_->transport();
      adopted_ = adopt_weights(model_, *transport_, owner, options.progress, displaced);
      manager_->join(*this, name, options);
    }
    for (const ExampleCall& example : options.example_calls) {
      make_example(example, [this](const Request& request) { call(request); });
    }
  } catch (...) {
    manager_->leave(*this, [this] { adopted_.reset(); });
    displaced.put_back();
    throw;
  }
}

PooledSession::~PooledSession() {
  manager_->leave(*this, [this] {
    model_.program = {};
    adopted_.reset();
  });
}

void PooledSession::set_vram_budget(std::uint64_t bytes) { manager_->set_most(*this, bytes); }

void PooledSession::release() {
  require_no_call_around("release()");
  manager_->release(*this);
}

ResidentCurve PooledSession::curve(std::uint64_t ring_bytes) const {
  return resident_curve(state_.observations().pass(), ring_bytes, model_.machine);
}

Plan PooledSession::plan(std::uint64_t bytes, std::uint64_t ring_bytes) const {
  return plan_beside_ring(state_.observations().pass(), bytes, ring_bytes, model_.machine);
}

Engine::Slab PooledSession::prepare(const Residency& residency,
                                    const std::function<void(std::uint64_t bytes)>& on_part) const {
  engine().check_file();
  return engine().prepare(residency, on_part);
}

void PooledSession::install(Engine::Slab slab, Plan plan) {
  adopted_->placed->install(std::move(slab));
  record_placed(plan.residency);
  state_.set_plan(std::move(plan), Readiness::placed);
}

void PooledSession::install_nothing(std::uint64_t ring_bytes) {
  Plan nothing = plan(0, ring_bytes);
  Residency residency = nothing.residency;
  residency.ring_bytes = 0; // which is the pool's
  install(engine().prepare(residency, nullptr), std::move(nothing));
}

void PooledSession::record_peak() {
  state_.record_peak(model_.fixed + engine().placed_bytes());
  manager_->record_peak();
}

/// Shows the steps of a method whose calls have not been seen yet.
Made PooledSession::attempt(int lane, const Request& request, Lanes::Overflow overflow) {
  std::vector<LeasedStep> trace;
  const bool is_new = !state_.has_steps(request.method);
  Made made = make_call(lane, request, overflow, is_new ? &trace : nullptr);
  if (made.output && is_new) {
    state_.record_steps(request.method, std::move(trace));
    manager_->note_change(*this);
  }
  return made;
}

c10::IValue PooledSession::call(const Request& request) {
  state_.refuse_again(request.shape);
  manager_->note_call(*this);
  for (const bool takes_all : {false, true}) {
    const auto came = std::chrono::steady_clock::now();
    const LaneLock held(gate(), lanes().callers_stream(),
                        takes_all ? ~std::uint64_t{0} : state_.expected_memory(request.shape), this);
    state_.record_turn(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - came).count());
    if (has_lost_places()) {
      break;
    }
    Made made = attempt(held.lane(), request, Lanes::Overflow::stop);
    if (made.output) {
      return std::move(*made.output);
    }
    if (made.memory.by_device) {
      state_.refuse(request.shape, made.memory, made.ended);
    }
  } // else others had what was missing: once more, when it has all
  return manager_->alone([&] { return call_alone(request); });
}

/// With all the memory that the pool has for calls. What it takes is to be known to its end before it is refused.
c10::IValue PooledSession::call_alone(const Request& request) {
  const Lanes::Overflow overflow = may_overflow_ ? Lanes::Overflow::lend : Lanes::Overflow::stop;
  Made made = attempt(0, request, overflow);
  if (!made.output && made.memory.bytes <= gate().room() && !made.memory.by_device) {
    lanes().release(); // it has room where what libraries work in is there from the beginning
    made = attempt(0, request, overflow);
  }
  manager_->note_change(*this);
  if (!made.output) {
    state_.refuse(request.shape, made.memory, made.ended);
  }
  return std::move(*made.output);
}

} // namespace offload
