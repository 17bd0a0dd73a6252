// The thread of a pool, which moves resident bytes to where they save most; see pool_manager.h.

#include <c10/util/ScopeExit.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <functional>
#include <iterator>
#include <utility>

#include <offload/bytes.h>
#include <offload/runtime/pool_manager.h>
#include <offload/runtime/pooled_session.h>

namespace offload {

namespace {

constexpr std::chrono::milliseconds kRests(1000); // a module that has lost a part, before it gets one
constexpr std::uint64_t kPart = 64_MiB;           // of a module, by which it grows and shrinks; or an eighth of it
constexpr std::uint64_t kLeast = 16;              // less than this part of a module is not worth a move
constexpr double kPays = 0.03;                    // of the time that all calls take, that a move has to save
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
    if (turn_.waiting > 0) {
      throw Interrupted();
    }
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

/// By what a module grows and shrinks.
std::uint64_t PoolManager::part_of(const Tenant& tenant) const {
  return align_up(std::max(kPart, tenant.session->weight_bytes() / 8), granularity(device_));
}

PoolManager::Division PoolManager::divide(std::uint64_t capacity) {
  Division division;
  for (Tenant& tenant : tenants_) {
    division.tenants.push_back(&tenant);
    division.taken += tenant.placed;
  }
  division.claimants = claimants();
  const std::uint64_t unit = granularity(device_);
  std::vector<std::uint64_t> lost(division.tenants.size()); // to units that parts leave in part
  for (const bool grown : {false, true}) {                  // by those that are there, and by those that come
    std::uint64_t left = capacity;
    for (std::size_t i = 0; i < lost.size(); ++i) {
      const Tenant& tenant = *division.tenants[i];
      const std::uint64_t more = grown ? left_of(division.given[i], tenant.session->resident_bytes()) : 0;
      lost[i] = left_of(tenant.placed, tenant.session->resident_bytes()) +
                (more > 0 ? (more / part_of(tenant) + 1) * unit : 0);
      left = left_of(left, lost[i]);
    }
    division.given = divide_resident(division.claimants, left);
  }
  for (std::size_t i = 0; i < lost.size(); ++i) {
    division.given[i] = (division.given[i] + lost[i]) / unit * unit;
    if (const Tenant& tenant = *division.tenants[i]; tenant.most < tenant.session->weight_bytes()) {
      division.given[i] = std::min(division.given[i], align_up(tenant.most, unit));
    }
  }
  return division;
}

/// Makes one move, if there is one that pays.
PoolManager::Move PoolManager::rebalance() {
  for (Tenant& tenant : tenants_) {
    if (tenant.session->may_lease_less()) {
      const ExclusiveLaneLock closed(transport_->gate(), tenant.session);
      change(tenant, [&](PooledSession& session) { session.lease_less(ring_.bytes); });
    }
    if (!tenant.session->is_predicted()) {
      tenant.session->predict(ring_.bytes);
    }
  }
  find_usual_call();
  const DeviceBudget budget = needs();
  if (const std::uint64_t ring = ring_for(budget); ring > ring_.bytes || 2 * ring < ring_.bytes) {
    const ExclusiveLaneLock alone(transport_->gate());
    evict_down_to(left_of(budget.capacity(), ring));
    start_ring(ring);
  }
  const std::uint64_t all = capacity(budget);
  const Division division = divide(all);
  const std::size_t victim = division.victim();
  const auto give_way = [&](std::uint64_t missing) {
    Tenant& tenant = *division.tenants[victim];
    const ExclusiveLaneLock closed(transport_->gate(), tenant.session);
    shrink(tenant, std::max(division.given[victim], left_of(tenant.placed, missing)));
    tenant.growth.rests_until = Clock::now() + kRests;
    return Move::made;
  };
  if (division.taken > all) {
    return victim < division.tenants.size() ? give_way(division.taken - all) : Move::none;
  }
  const auto now = Clock::now();
  const double saved_us = division.saved(); // lately, by calls
  const double load_us = load_of(division.claimants, division.given);
  bool any_rests = false;
  std::size_t best = division.tenants.size(); // by how often it is called
  for (std::size_t i = 0; i < division.tenants.size(); ++i) {
    const Tenant& tenant = *division.tenants[i];
    const std::uint64_t given = division.given[i];
    const std::uint64_t more = left_of(given, tenant.placed);
    const bool is_much =
        more > 0 && (more >= tenant.session->weight_bytes() / kLeast || given >= division.claimants[i].most);
    const double rate = division.claimants[i].rate;
    const bool pays = saved_us > std::max(kPays * load_us, tenant.session->link_us(more));
    const bool may = division.fits(i, all) ||
                     (victim != division.tenants.size() && (pays || kIdle * division.claimants[victim].rate < rate));
    const bool is_vain = [&] {
      const Lock lock(mutex_); // what is known of it may change
      return given <= tenant.growth.in_vain;
    }();
    if (!is_much || is_vain || !may) {
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
  const std::uint64_t then = division.taken - division.tenants[best]->placed + division.given[best];
  return then <= all ? grow(*division.tenants[best], division.given[best]) : give_way(then - all);
}

/// Takes `bytes` from the room for calls: those that come keep to what is left, and those in flight may end soon. False
/// when they do not. The caller sets the room again.
bool PoolManager::take_from_calls(std::uint64_t bytes) {
  LaneGate& gate = transport_->gate();
  const std::uint64_t room = gate.room();
  if (bytes > room) {
    return false;
  }
  const auto until = Clock::now() + kRests / 10;
  while (!gate.lower_room(room - bytes)) {
    if (turn_.waiting > 0) {
      throw Interrupted();
    }
    if (Clock::now() > until) {
      return false;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return transport_->lanes().trim_to_room();
}

/// Brings more of its weights beside calls, so that these take `bytes`, and has them used. Later, when calls need the
/// room.
PoolManager::Move PoolManager::grow(Tenant& tenant, std::uint64_t bytes) {
  LaneGate& gate = transport_->gate();
  const std::uint64_t unit = granularity(device_);
  const std::uint64_t changes = [&] {
    const Lock lock(mutex_);
    return signals_.changes;
  }();
  std::vector<Residency> parts = tenant.session->more(bytes - tenant.placed, part_of(tenant), ring_.bytes);
  const auto units_of = [&] {
    std::uint64_t units = 0;
    for (const Residency& one : parts) {
      units += align_up(bytes_of(one), unit);
    }
    return units;
  };
  while (parts.size() > 1 && tenant.placed + units_of() > bytes) { // by what parts leave of their last units
    const Residency last = std::move(parts.back());
    parts.pop_back();
    std::transform(last.bytes.begin(), last.bytes.end(), parts.back().bytes.begin(), parts.back().bytes.begin(),
                   std::plus<>());
  }
  const std::uint64_t taken = units_of();
  if (taken == 0 || tenant.placed + taken > bytes) {
    const Lock lock(mutex_);
    tenant.growth.in_vain = changes == signals_.changes ? bytes : 0; // others may grow
    return Move::made;
  }
  const auto end = c10::make_scope_exit([this] {
    peak_.coming = 0;
    set_room();
  });
  if (device_.is_cuda() && !take_from_calls(taken)) {
    tenant.growth.rests_until = Clock::now() + kRests / 2; // calls have all the room meanwhile
    return Move::later;
  }
  peak_.coming = taken;
  std::vector<Engine::Slab> brought;
  std::string problem;
  bool interrupted = false;
  try {
    for (const Residency& one : parts) {
      brought.push_back(tenant.session->prepare(one, beside_calls(*tenant.session)));
    }
  } catch (const Interrupted&) {
    interrupted = true;
  } catch (const std::exception& error) { // of the file, or no memory: calls stream, and say what is wrong
    problem = error.what();
  }
  if (!brought.empty()) {
    try {
      const ExclusiveLaneLock closed(gate, tenant.session);
      peak_.coming = 0; // what was coming is counted as placed
      change(tenant, [&](PooledSession& session) { session.add(std::move(brought), ring_.bytes); });
    } catch (const std::exception& error) {
      problem = error.what();
    }
  }
  if (interrupted && problem.empty()) {
    throw Interrupted();
  }
  const Lock lock(mutex_);
  tenant.growth.problem = problem;
  if (!problem.empty()) {
    tenant.growth.most = tenant.placed + taken / 2;
    tenant.growth.rests_until = Clock::now() + 5 * kRests;
    return Move::later;
  }
  tenant.growth.most = ~std::uint64_t{0};
  return Move::made;
}

/// After each piece of what is brought: while calls stream, it waits until the piece has had no more than a quarter of
/// the link in its time. What it has waited itself, behind what streams, counts.
std::function<void(std::uint64_t bytes)> PoolManager::beside_calls(const PooledSession& session) {
  return [this, &session, streamed = transport_->link_bytes(), begun = Clock::now()](std::uint64_t bytes) mutable {
    const std::uint64_t now = transport_->link_bytes();
    const bool calls_stream = std::exchange(streamed, now) != now;
    const auto until = begun + std::chrono::microseconds(static_cast<std::int64_t>(4 * session.link_us(bytes)));
    do {
      if (turn_.waiting > 0) {
        throw Interrupted();
      }
      begun = Clock::now();
      if (calls_stream && begun < until) {
        std::this_thread::sleep_for(std::min<Clock::duration>(until - begun, std::chrono::milliseconds(5)));
      }
    } while (calls_stream && begun < until);
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
