// The thread of a pool, which moves resident bytes to where they save most; see pool_manager.h.

#include <algorithm>
#include <cmath>
#include <exception>
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
struct Interrupted : std::exception {};

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
  for (Tenant& tenant : tenants_) { // of who has the turn
    std::shared_ptr<const ResidentCurve> curve;
    for (std::uint64_t changes = 0; !curve;) { // what is found out while more becomes known is out of date
      {
        const Lock lock(mutex_);
        curve = tenant.curve;
        changes = signals_.changes;
      }
      if (!curve) {
        auto found = std::make_shared<const ResidentCurve>(tenant.session->curve(ring_.bytes));
        const Lock lock(mutex_);
        tenant.curve = changes == signals_.changes ? std::move(found) : nullptr;
      }
    }
    const std::uint64_t most = std::min({tenant.most, tenant.session->weight_bytes(), tenant.growth.most});
    const bool may_have = tenant.session->is_filled();
    const Lock lock(mutex_);
    all.push_back({std::move(curve), may_have ? tenant.rate(Clock::now()) : 0, most});
  }
  return all;
}

/// Who gives way: of those that have more than they would be given, the one with most of that; else none of them.
std::size_t PoolManager::Division::victim() const {
  std::size_t most = tenants.size();
  std::uint64_t surplus = 0;
  for (std::size_t i = 0; i < tenants.size(); ++i) {
    if (left_of(tenants[i]->placed, given[i]) > surplus) {
      most = i;
      surplus = left_of(tenants[i]->placed, given[i]);
    }
  }
  return most;
}

/// True when tenant `i` finds room for what it is given, whatever the others have.
bool PoolManager::Division::fits(std::size_t i, std::uint64_t capacity) const {
  return taken - tenants[i]->placed + given[i] <= capacity;
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
  const std::uint64_t unit = granularity(device_); // in which each of them takes memory
  division.given = divide_resident(division.claimants, left_of(capacity, division.tenants.size() * unit));
  for (std::uint64_t& bytes : division.given) {
    bytes = align_up(bytes, unit);
  }
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
  const std::size_t victim = division.victim();
  const auto give_way = [&] {
    Tenant& tenant = *division.tenants[victim];
    const ExclusiveLaneLock closed(transport_->gate(), tenant.session);
    evict(tenant);
    tenant.growth.rests_until = Clock::now() + kRests;
    return Move::made;
  };
  if (division.taken > all) {
    return victim < division.tenants.size() ? give_way() : Move::none;
  }
  const auto now = Clock::now();
  const double saved_us = division.saved(); // lately, by calls
  const double load_us = load_of(division.claimants, division.given);
  bool any_rests = false;
  std::size_t best = division.tenants.size(); // by how often it is called
  for (std::size_t i = 0; i < division.tenants.size(); ++i) {
    const Tenant& tenant = *division.tenants[i];
    const std::uint64_t given = division.given[i];
    const double rate = division.claimants[i].rate;
    const bool pays = saved_us > std::max(kPays * load_us, tenant.session->link_us(given));
    const bool may = division.fits(i, all) ||
                     (victim != division.tenants.size() && (pays || kIdle * division.claimants[victim].rate < rate));
    if (given <= std::max(tenant.placed, tenant.growth.in_vain) || !may) {
      continue;
    }
    if (now < tenant.growth.rests_until) {
      any_rests = true;
    } else if (best == division.tenants.size() || rate > division.claimants[best].rate) {
      best = i;
    }
  }
  if (best == division.tenants.size()) {
    return any_rests ? Move::later : Move::none;
  }
  return division.fits(best, all) ? grow(*division.tenants[best], division.given[best]) : give_way();
}

/// Brings up to `bytes` of its weights beside calls, and has them used. Later, when calls need the room.
PoolManager::Move PoolManager::grow(Tenant& tenant, std::uint64_t bytes) {
  LaneGate& gate = transport_->gate();
  Plan plan = tenant.session->plan(bytes, ring_.bytes);
  Residency residency = plan.residency;
  residency.ring_bytes = 0; // which is the pool's
  const std::uint64_t taken = align_up(bytes_of(residency), granularity(device_));
  if (taken <= tenant.placed) {
    tenant.growth.in_vain = bytes;
    return Move::made; // others may grow
  }
  if (tenant.placed > 0) { // there is no room for both
    const ExclusiveLaneLock closed(gate, tenant.session);
    evict(tenant);
  }
  std::string problem;
  bool has_room = true;
  try {
    if (device_.is_cuda()) {
      const std::uint64_t all = gate.room();
      has_room = taken <= all && gate.lower_room(all - taken) && transport_->lanes().trim_to_room();
    }
    if (has_room) {
      peak_.coming = taken;
      Engine::Slab slab = tenant.session->prepare(residency, beside_calls());
      const ExclusiveLaneLock closed(gate, tenant.session);
      transport_->lanes().synchronize();
      tenant.session->install(std::move(slab), std::move(plan));
      const Lock lock(mutex_);
      tenant.placed = taken;
    }
  } catch (const Interrupted&) {
    peak_.coming = 0;
    set_room();
    throw;
  } catch (const std::exception& error) { // of the file, or no memory: calls stream, and say what is wrong
    problem = error.what();
  }
  peak_.coming = 0;
  if (!has_room || !problem.empty()) {
    set_room();
  }
  const Lock lock(mutex_);
  tenant.growth.problem = problem;
  if (!problem.empty()) {
    tenant.growth.most = taken / 2;
    tenant.growth.rests_until = Clock::now() + 5 * kRests;
  } else if (has_room) {
    tenant.growth.rests_until = Clock::now() + kRests;
    if (tenant.wake.since) {
      tenant.wake.seconds = std::chrono::duration<double>(Clock::now() - *tenant.wake.since).count();
      tenant.wake.since.reset();
    }
  }
  return has_room && problem.empty() ? Move::made : Move::later;
}

/// After each part of what is brought: while calls stream, most of the link is theirs.
std::function<void(std::uint64_t bytes)> PoolManager::beside_calls() {
  return [this, streamed = transport_->link_bytes(), begun = Clock::now()](std::uint64_t) mutable {
    const std::uint64_t now = transport_->link_bytes();
    const auto pause = std::exchange(streamed, now) != now ? 3 * (Clock::now() - begun) : Clock::duration::zero();
    std::this_thread::sleep_for(pause);
    if (turn_.waiting > 0) {
      throw Interrupted();
    }
    begun = Clock::now();
  };
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
    std::chrono::milliseconds pause = kPause;
    {
      const Unlock unlocked(mutex_);
      Move move = Move::made;
      try {
        const Turn turn(*this);
        for (int moves = 0; moves < 64 && turn_.waiting == 0 && move == Move::made; ++moves) {
          move = rebalance();
        }
      } catch (const Interrupted&) {    // go on afterwards
      } catch (const std::exception&) { // what could not be placed, the next call of the module places, or reports
        pause = kRests;
      }
      if (move != Move::none) {
        signal();
      }
    }
    for (const auto until = Clock::now() + pause; !signals_.stopping && Clock::now() < until;) {
      changed_.wait_for(mutex_, pause);
    }
    signals_.wanted = signals_.wanted || std::any_of(tenants_.begin(), tenants_.end(),
                                                     [](const Tenant& tenant) { return !tenant.session->is_filled(); });
  }
}

} // namespace offload
