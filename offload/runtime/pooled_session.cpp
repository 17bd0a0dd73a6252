#include <offload/runtime/pooled_session.h>

#include <algorithm>
#include <utility>

#include <offload/bytes.h>

namespace offload {

namespace {

std::shared_ptr<PoolManager> manager_for(const Options& options) {
  std::shared_ptr<PoolManager> manager = options.pool->manager();
  if (is_within_call_on(*manager->transport())) {
    throw Error("a module is loaded into a pool from within a call of one that lives there, and would wait for that " +
                std::string("call for ever: load it when the call has returned"));
  }
  return manager;
}

std::string class_name(const torch::jit::Module& module) {
  const auto name = module.type()->name();
  return name ? name->name() : "a module";
}

} // namespace

PooledSession::PooledSession(const torch::jit::Module& module, const Options& options, Owner owner,
                             const std::string& file)
    : PooledSession(module, options, owner, file, manager_for(options)) {}

PooledSession::PooledSession(const torch::jit::Module& module, const Options& options, Owner owner,
                             const std::string& file, const std::shared_ptr<PoolManager>& manager)
    : PooledSession(module, options, owner, file, manager, manager->begin_to_load()) {}

PooledSession::PooledSession(const torch::jit::Module& module, const Options& options, Owner owner,
                             const std::string& file, std::shared_ptr<PoolManager> manager,
                             std::unique_lock<std::mutex> loading)
    : Session(module, manager->options_for(options), std::nullopt), manager_(std::move(manager)) {
  const std::string name = file.empty() ? class_name(module) : file;
  if (model_.program.writes_state) {
    throw InputError(name + " writes its own state, and such a model can not live in a pool: give it a vram_budget");
  }
  Displaced displaced;
  std::optional<PoolManager::Turn> turn(std::in_place, *manager_);
  manager_->admit(*this, name);
  try {
    transport_ = manager_->transport();
    adopted_ = adopt_weights(model_, *transport_, owner, options.progress, displaced);
    manager_->join(*this, name, options);
    turn.reset();
    loading.unlock();
    for (const ExampleCall& example : options.example_calls) {
      make_example(example, [this](const Request& request) { call(request); });
    }
  } catch (...) {
    if (!turn) {
      turn.emplace(*manager_);
    }
    leave();
    displaced.put_back();
    throw;
  }
}

PooledSession::~PooledSession() {
  const PoolManager::Turn turn(*manager_);
  model_.program = {};
  leave();
}

void PooledSession::leave() noexcept {
  manager_->leave(
      *this,
      [this] {
        if (adopted_) {
          engine().leave();
        }
      },
      [this] { adopted_.reset(); });
}

void PooledSession::set_vram_budget(std::uint64_t bytes) {
  require_no_call_around("a new budget");
  manager_->set_most(*this, bytes);
}

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

/// Where it throws, nothing is placed, and the next call sees to that.
void PooledSession::install(Engine::Slab slab, Plan plan) {
  try {
    adopted_->placed->install(std::move(slab));
    record_placed(plan.residency);
    state_.set_plan(std::move(plan), Readiness::placed);
  } catch (...) {
    adopted_->placed->clear();
    throw;
  }
}

void PooledSession::install_nothing(std::uint64_t ring_bytes) {
  Plan nothing = plan(0, std::max(ring_bytes, needs().least_ring));
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
                        takes_all ? ~std::uint64_t{0} : state_.expected_memory(request.shape), this,
                        PriorityGuard::current());
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
    state_.refuse(request.shape, made.memory, made.ended, PlanState::Refusal::until_more);
  }
  return std::move(*made.output);
}

} // namespace offload
