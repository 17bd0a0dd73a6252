// The thread of a pool, which moves resident bytes to where they save most; see pool_manager.h.

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include <offload/bytes.h>
#include <offload/runtime/pool_manager.h>
#include <offload/runtime/pooled_session.h>

namespace offload {

namespace {

constexpr std::chrono::seconds kRests(1); // a module that has been moved, before it is again
constexpr double kPays = 0.03;            // of the time that all calls take, that a move has to save
constexpr double kIdle = 10; // a module that is called so many times less than another gives way to it in any case

/// Ends what is being brought: somebody wants the turn.
struct Interrupted {};

} // namespace

double PoolManager::Tenant::score_at(Clock::time_point now) const {
  constexpr double kLately = 10; // seconds
  return score * std::exp(-std::chrono::duration<double>(now - last_call).count() / kLately);
}

/// A module that nobody calls has what is left over.
double PoolManager::Tenant::rate(Clock::time_point now) const {
  return is_released ? 0 : (score_at(now) + 1e-6) * weight;
}

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

/// Who gives way: of those that have more than they would be given, the one with most of that; null when there is none.
PoolManager::Tenant* PoolManager::Division::victim() const {
  Tenant* most = nullptr;
  std::uint64_t surplus = 0;
  for (std::size_t i = 0; i < tenants.size(); ++i) {
    if (left_of(tenants[i]->placed, given[i]) > surplus) {
      most = tenants[i];
      surplus = left_of(most->placed, given[i]);
    }
  }
  return most;
}

/// The time that calls take as it is, less what they would take as it is given.
double PoolManager::Division::saved() const {
  std::vector<std::uint64_t> has;
  std::transform(tenants.begin(), tenants.end(), std::back_inserter(has),
                 [](const Tenant* tenant) { return tenant->placed; });
  return load_of(claimants, has) - load_of(claimants, given);
}

PoolManager::Division PoolManager::divide(std::uint64_t capacity) {
  Division division;
  for (Tenant& tenant : tenants_) {
    division.tenants.push_back(&tenant);
    division.taken += tenant.placed;
  }
  division.claimants = claimants();
  division.given = divide_resident(division.claimants, capacity);
  return division;
}

/// Makes one move, if there is one that pays.
PoolManager::Move PoolManager::rebalance() {
  const DeviceBudget budget = needs();
  if (const std::uint64_t ring = ring_for(budget); ring > ring_.bytes || 2 * ring < ring_.bytes) {
    const ExclusiveLaneLock alone(transport_->gate());
    evict_down_to(left_of(budget.capacity(), ring));
    start_ring(ring);
  }
  const std::uint64_t all = capacity(budget);
  const Division division = divide(all);
  Tenant* const victim = division.victim();
  const auto give_way = [&] {
    const ExclusiveLaneLock closed(transport_->gate(), victim->session);
    evict(*victim);
    return Move::made;
  };
  if (division.taken > all) {
    return victim ? give_way() : Move::none;
  }
  const auto now = Clock::now();
  const bool pays = division.saved() > kPays * load_of(division.claimants, division.given);
  bool any_rests = false;
  std::size_t best = division.tenants.size(); // by how often it is called
  for (std::size_t i = 0; i < division.tenants.size(); ++i) {
    const Tenant& tenant = *division.tenants[i];
    const bool fits = division.taken - tenant.placed + division.given[i] <= all;
    const bool may = fits || (victim && (pays || kIdle * victim->rate(now) < tenant.rate(now)));
    if (division.given[i] <= tenant.placed || !may) {
      continue;
    }
    if (now < tenant.rests_until) {
      any_rests = true;
    } else if (best == division.tenants.size() || tenant.rate(now) > division.tenants[best]->rate(now)) {
      best = i;
    }
  }
  if (best == division.tenants.size()) {
    return any_rests ? Move::later : Move::none;
  }
  Tenant& tenant = *division.tenants[best];
  const bool fits = division.taken - tenant.placed + division.given[best] <= all;
  return fits ? grow(tenant, division.given[best]) : give_way();
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
  if (tenant.wake.since) {
    tenant.wake.seconds = std::chrono::duration<double>(Clock::now() - *tenant.wake.since).count();
    tenant.wake.since.reset();
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
