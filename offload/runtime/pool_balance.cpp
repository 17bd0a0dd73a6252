// The thread of a pool, which moves resident bytes to where they save most; see pool_manager.h.

#include <algorithm>
#include <utility>

#include <offload/bytes.h>
#include <offload/runtime/pool_manager.h>
#include <offload/runtime/pooled_session.h>

namespace offload {

namespace {

constexpr std::chrono::seconds kRests(1); // a module that has been moved, before it is again

/// Ends what is being brought: somebody wants the turn.
struct Interrupted {};

} // namespace

/// What each of the tenants would have of resident bytes, in their order.
std::vector<Claimant> PoolManager::claimants() {
  std::vector<Claimant> all;
  const auto now = Clock::now();
  for (Tenant& tenant : tenants_) { // of who has the turn
    bool is_known = false;
    {
      const Lock lock(mutex_);
      is_known = !tenant.curve.points.empty();
    }
    if (!is_known) {
      ResidentCurve curve = tenant.session->curve(ring_.bytes);
      const Lock lock(mutex_);
      tenant.curve = std::move(curve);
    }
    const Lock lock(mutex_);
    all.push_back({&tenant.curve, tenant.session->is_filled() ? tenant.rate(now) : 0,
                   std::min(tenant.most, tenant.session->weight_bytes())});
  }
  return all;
}

/// Makes one move, if there is one that pays.
PoolManager::Move PoolManager::rebalance() {
  constexpr double kPays = 0.97; // of the time that all calls take
  const DeviceBudget budget = needs();
  if (const std::uint64_t ring = ring_for(budget); ring > ring_.bytes || 2 * ring < ring_.bytes) {
    const ExclusiveLaneLock alone(transport_->gate());
    evict_down_to(left_of(budget.capacity(), ring));
    start_ring(ring);
  }
  const std::vector<Claimant> wanting = claimants();
  const std::vector<std::uint64_t> wanted = divide_resident(wanting, capacity(budget));
  std::vector<std::uint64_t> has;
  std::vector<Tenant*> tenants;
  for (Tenant& tenant : tenants_) {
    has.push_back(tenant.placed);
    tenants.push_back(&tenant);
  }
  const std::uint64_t taken = placed();
  const auto surplus = [&](std::size_t i) { return has[i] - std::min(has[i], wanted[i]); };
  const auto give_way = [&] {
    std::size_t most = 0;
    for (std::size_t i = 1; i < tenants.size(); ++i) {
      most = surplus(i) > surplus(most) ? i : most;
    }
    if (tenants.empty() || surplus(most) == 0) {
      return Move::none;
    }
    const ExclusiveLaneLock closed(transport_->gate(), tenants[most]->session);
    evict(*tenants[most]);
    return Move::made;
  };
  if (taken > capacity(budget)) {
    return give_way();
  }
  const bool pays = load_of(wanting, wanted) <= kPays * load_of(wanting, has);
  const auto fits = [&](std::size_t i) { return taken - has[i] + wanted[i] <= capacity(budget); };
  std::size_t best = tenants.size();
  double most_saved = -1;
  bool any_rests = false;
  for (std::size_t i = 0; i < tenants.size(); ++i) {
    const double saved = load_of({wanting[i]}, {has[i]}) - load_of({wanting[i]}, {wanted[i]});
    if (wanted[i] <= has[i] || !(pays || fits(i)) || saved <= most_saved) {
      continue;
    }
    if (Clock::now() < tenants[i]->rests_until) {
      any_rests = true;
      continue;
    }
    best = i;
    most_saved = saved;
  }
  if (best == tenants.size()) {
    return any_rests ? Move::later : Move::none;
  }
  return fits(best) ? grow(*tenants[best], wanted[best]) : give_way();
}

/// Brings up to `bytes` of its weights beside calls, and has them used. Later, when calls need the room.
PoolManager::Move PoolManager::grow(Tenant& tenant, std::uint64_t bytes) {
  LaneGate& gate = transport_->gate();
  Plan plan = tenant.session->plan(bytes, ring_.bytes);
  const std::uint64_t resident = bytes_of(plan.residency) - plan.residency.ring_bytes;
  if (resident <= tenant.placed) {
    tenant.rests_until = Clock::now() + kRests;
    return Move::none;
  }
  if (tenant.placed > 0) { // there is no room for both
    const ExclusiveLaneLock closed(gate, tenant.session);
    evict(tenant);
  }
  const std::uint64_t taken = align_up(resident, needs().unit);
  if (device_.is_cuda()) {
    const std::uint64_t all = gate.room();
    if (all < taken || !gate.lower_room(all - taken) || !transport_->lanes().trim_to_room()) {
      set_room();
      return Move::later;
    }
  }
  Residency residency = plan.residency;
  residency.ring_bytes = 0; // which is the pool's
  std::uint64_t streamed = transport_->link_bytes();
  auto begun = Clock::now();
  const auto on_part = [&](std::uint64_t) {
    const std::uint64_t now = transport_->link_bytes();
    if (turn_.waiting > 0) {
      throw Interrupted();
    }
    if (std::exchange(streamed, now) != now) { // calls stream, too: most of the link is theirs
      std::this_thread::sleep_for(3 * (Clock::now() - begun));
    }
    begun = Clock::now();
  };
  try {
    Engine::Slab slab = tenant.session->prepare(residency, on_part);
    const ExclusiveLaneLock closed(gate, tenant.session);
    transport_->lanes().synchronize();
    tenant.session->install(std::move(slab), std::move(plan));
  } catch (const std::exception&) { // a file that can not be read, or no memory: calls stream, and say what is wrong
    set_room();
    tenant.rests_until = Clock::now() + 5 * kRests;
    return Move::later;
  } catch (const Interrupted&) {
    set_room();
    throw;
  }
  tenant.rests_until = Clock::now() + kRests;
  const Lock lock(mutex_);
  tenant.placed = taken;
  if (tenant.waking) {
    tenant.wake_seconds = std::chrono::duration<double>(Clock::now() - *tenant.waking).count();
    tenant.waking.reset();
  }
  return Move::made;
}

/// The thread of the pool.
void PoolManager::keep() {
  constexpr std::chrono::milliseconds kPause(20); // between looks
  const Lock lock(mutex_);
  while (true) {
    changed_.wait(mutex_, [&]() OFFLOAD_REQUIRES(mutex_) { return signals_.wanted || signals_.stopping; });
    if (signals_.stopping) {
      return;
    }
    signals_.wanted = false;
    {
      const Unlock unlocked(mutex_);
      try {
        const Turn turn(*this);
        Move move = Move::made;
        for (int moves = 0; moves < 64 && turn_.waiting == 0 && move == Move::made; ++moves) {
          move = rebalance();
        }
        if (move != Move::none) {
          signal(); // go on afterwards
        }
      } catch (const Interrupted&) {
        signal();                       // go on afterwards
      } catch (const std::exception&) { // what could not be placed, the next call of the module places, or reports
      }
    }
    changed_.wait_for(mutex_, kPause);
    signals_.wanted = signals_.wanted || std::any_of(tenants_.begin(), tenants_.end(),
                                                     [](const Tenant& tenant) { return !tenant.session->is_filled(); });
  }
}

} // namespace offload
