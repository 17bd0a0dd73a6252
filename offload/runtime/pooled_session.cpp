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
    : Session(module, manager->options_for(options), std::nullopt),
      manager_(std::move(manager)),
      held_bytes_(state_.held_bytes()) {
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

Residency PooledSession::resident() const {
  Residency resident{std::vector<std::uint64_t>(model_.count()), 0};
  for (WeightId weight = 0; weight < model_.count(); ++weight) {
    resident.bytes[weight] = engine().stays(weight) ? model_.weight(weight).bytes : 0;
  }
  return resident;
}

/// Of what is `kept`, and the best beside it, of up to `bytes`.
Plan PooledSession::plan(const Residency& kept, std::uint64_t bytes, std::uint64_t ring_bytes) const {
  return plan_beside_ring(state_.observations().pass(), bytes_of(kept) + bytes,
                          std::max(ring_bytes, needs().least_ring), model_.machine, kept);
}

std::vector<Residency> PooledSession::more(std::uint64_t bytes, std::uint64_t part, std::uint64_t ring_bytes) const {
  std::vector<Residency> parts;
  Residency kept = resident();
  const std::uint64_t all = bytes_of(kept) + bytes;
  while (bytes_of(kept) < all) {
    const std::uint64_t left = all - bytes_of(kept);
    Residency now = plan(kept, std::min(left, part), ring_bytes).residency;
    now.ring_bytes = 0;               // which is the pool's
    if (now == kept && left > part) { // no weight is so small
      now = plan(kept, left, ring_bytes).residency;
      now.ring_bytes = 0;
    }
    if (now == kept) {
      break;
    }
    Residency& added = parts.emplace_back(now);
    for (WeightId weight = 0; weight < model_.count(); ++weight) {
      added.bytes[weight] -= kept.bytes[weight];
    }
    kept = std::move(now);
  }
  return parts;
}

Engine::Slab PooledSession::prepare(const Residency& residency,
                                    const std::function<void(std::uint64_t bytes)>& on_part) const {
  engine().check_file();
  return engine().prepare(residency, on_part);
}

/// Whether calls, of all methods that are in use, have shown what they lease.
bool PooledSession::has_shown_steps() const {
  constexpr std::uint64_t kSome = 8; // calls
  Stats stats;
  state_.report(stats);
  return state_.has_steps() && stats.calls >= kSome;
}

/// Calls lease all until they have shown what that is.
void PooledSession::alter(const std::function<void(Engine& engine, const Placeholders& known)>& change,
                          std::uint64_t ring_bytes) {
  try {
    adopted_->placed->alter(change, has_shown_steps() ? PlacedModule::Leased::streamed : PlacedModule::Leased::all);
    Residency now = resident();
    record_placed(now);
    now.ring_bytes = ring_bytes;
    is_predicted_ = false;
    state_.set_residency(std::move(now));
    state_.set_readiness(Readiness::placed);
  } catch (...) {
    adopted_->placed->clear();
    throw;
  }
}

void PooledSession::add(std::vector<Engine::Slab> parts, std::uint64_t ring_bytes) {
  alter([&](Engine& engine, const Placeholders& known) { engine.add(std::move(parts), known); }, ring_bytes);
}

void PooledSession::drop_down_to(std::uint64_t bytes, std::uint64_t ring_bytes) {
  alter([&](Engine& engine, const Placeholders& known) { engine.drop_down_to(bytes, known); }, ring_bytes);
}

void PooledSession::drop_all(std::uint64_t ring_bytes) {
  const Residency nothing{std::vector<std::uint64_t>(model_.count()), 0};
  alter(
      [&](Engine& engine, const Placeholders& known) {
        engine.clear();
        engine.add({engine.prepare(nothing, nullptr)}, known);
      },
      ring_bytes);
}

void PooledSession::predict(std::uint64_t ring_bytes) {
  is_predicted_ = true;
  state_.set_plan(plan(resident(), 0, ring_bytes), Readiness::placed);
}

bool PooledSession::may_lease_less() const {
  return engine().placed() && adopted_->placed->leases_all() && engine().placed_bytes() > 0 && has_shown_steps();
}

void PooledSession::lease_less(std::uint64_t ring_bytes) {
  alter([](Engine&, const Placeholders&) {}, ring_bytes);
}

void PooledSession::record_peak() {
  state_.record_peak(model_.fixed + engine().placed_bytes());
  manager_->record_peak();
}

/// Shows the steps of a method whose calls have not been seen yet, while calls lease all that they read.
Made PooledSession::attempt(int lane, const Request& request, Lanes::Overflow overflow) {
  std::vector<LeasedStep> trace;
  const bool is_new = adopted_->placed->leases_all() && !state_.has_steps(request.method);
  Made made = make_call(lane, request, overflow, is_new ? &trace : nullptr);
  if (made.output && is_new) {
    state_.record_steps(request.method, request.shape, std::move(trace));
    manager_->note_change(*this);
  }
  return made;
}

c10::IValue PooledSession::call(const Request& request) {
  state_.refuse_again(request.shape);
  if (record_laps()) {
    is_predicted_ = false;
    manager_->note_change(*this);
  }
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
