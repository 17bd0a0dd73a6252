// How the budget of a pool is divided between what stays, the ring, resident weights and calls; see pool_manager.h.

#include <algorithm>
#include <bit>

#include <offload/bytes.h>
#include <offload/error.h>
#include <offload/runtime/pool_manager.h>
#include <offload/runtime/pooled_session.h>

namespace offload {

/// Of all modules, and of one `more` that is no tenant yet.
DeviceBudget PoolManager::needs(const PooledSession* more) const {
  DeviceBudget sum;
  std::uint64_t held = 0; // until calls end, of all modules at the same time
  const Lock lock(mutex_);
  const auto add = [&](const PooledSession& session) {
    const DeviceBudget needs = session.needs();
    sum.fixed += needs.fixed;
    sum.least_ring = std::max(sum.least_ring, needs.least_ring);
    sum.calls_differ = sum.calls_differ || needs.calls_differ || (sum.call > 0 && sum.call != needs.call);
    sum.call = std::max(sum.call, needs.call);
    sum.unit = needs.unit;
    held += session.held_bytes();
  };
  for (const Tenant& tenant : tenants_) {
    add(*tenant.session);
  }
  if (more) {
    add(*more);
  }
  sum.usual_call = budgets_.usual_call;
  sum.least_ring = std::max(sum.least_ring, held);
  sum.vram = budgets_.vram;
  sum.lanes = std::min(signals_.demand.callers(), transport_->gate().lanes());
  return sum;
}

/// What calls beside the largest take, by those of late: in coarse steps, and lowered only where it is less by two of
/// them, since what is kept for calls is taken from weights.
void PoolManager::find_usual_call() {
  constexpr double kEnough = 16; // calls
  const auto now = Clock::now();
  const Lock lock(mutex_);
  double bytes = 0;
  double calls = 0;
  std::uint64_t largest = 0;
  for (const Tenant& tenant : tenants_) {
    const std::uint64_t call = tenant.session->largest_call();
    const double score = call > 0 ? tenant.score_at(now) : 0;
    bytes += score * static_cast<double>(call);
    calls += score;
    largest = std::max(largest, call);
  }
  if (calls < kEnough || device_.is_cpu()) {
    return;
  }
  const std::uint64_t step = std::bit_ceil(std::max(largest / 8, kDeviceGranularity));
  const std::uint64_t usual = align_up(static_cast<std::uint64_t>(bytes / calls), step);
  if (budgets_.usual_call == 0 || usual > budgets_.usual_call || usual + 2 * step <= budgets_.usual_call) {
    budgets_.usual_call = usual;
  }
}

/// What no call has shown yet is no reason to refuse.
void PoolManager::require_minimum(std::uint64_t vram, const PooledSession* more, const std::string& name) const {
  DeviceBudget budget = needs(more);
  budget.call = more ? more->largest_call() : 0;
  {
    const Lock lock(mutex_);
    for (const Tenant& tenant : tenants_) {
      budget.call = std::max(budget.call, tenant.session->largest_call());
    }
  }
  if (vram < budget.minimum()) {
    throw BudgetError("vram_budget " + format_bytes(vram) + " of the pool is too small for " + name +
                          ": the smallest that works is " + std::to_string(budget.minimum()) + " bytes",
                      budget.minimum());
  }
}

/// A few of the largest steps, or of the batches that copies are gathered to, and no more than a quarter of what there
/// is; where all weights have room, what these leave. At the least what the largest step needs.
std::uint64_t PoolManager::ring_for(const DeviceBudget& budget, bool least) const {
  const std::uint64_t needed = align_up(budget.least_ring, budget.unit);
  if (least || needed == 0) {
    return needed;
  }
  std::uint64_t weights = 0;
  {
    const Lock lock(mutex_);
    for (const Tenant& tenant : tenants_) {
      weights += align_up(tenant.session->weight_bytes(), budget.unit);
    }
  }
  const std::uint64_t wanted = std::min(std::max(3 * needed, 4 * kBatchBytes), budget.capacity() / 4);
  const std::uint64_t left = left_of(budget.capacity(), weights);
  return std::max(needed, (left >= needed ? std::min(wanted, left) : wanted) / budget.unit * budget.unit);
}

/// For resident weights.
std::uint64_t PoolManager::capacity(const DeviceBudget& budget) const {
  return left_of(budget.capacity(), ring_.bytes);
}

std::uint64_t PoolManager::placed() const {
  const Lock lock(mutex_);
  std::uint64_t bytes = 0;
  for (const Tenant& tenant : tenants_) {
    bytes += tenant.placed;
  }
  return bytes;
}

/// For calls; on a host they take what they need.
std::uint64_t PoolManager::room(const DeviceBudget& budget) const {
  return device_.is_cuda() ? budget.room(ring_.bytes + placed()) : ~std::uint64_t{0};
}

void PoolManager::set_room() { transport_->gate().set_room(room(needs())); }

} // namespace offload
