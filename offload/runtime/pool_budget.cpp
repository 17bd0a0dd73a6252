// How the budget of a pool is divided between what stays, the ring, resident weights and calls; see pool_manager.h.

#include <algorithm>

#include <offload/bytes.h>
#include <offload/error.h>
#include <offload/runtime/pool_manager.h>
#include <offload/runtime/pooled_session.h>

namespace offload {

/// Of all modules, and of one `more` that is no tenant yet.
DeviceBudget PoolManager::needs(const PooledSession* more) const {
  DeviceBudget sum;
  std::uint64_t held = 0; // until calls end, of all modules at the same time
  double taken = 0;       // by calls of late, and how many these were
  double calls = 0;
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
  const auto now = Clock::now();
  for (const Tenant& tenant : tenants_) {
    add(*tenant.session);
    const double rate = tenant.rate(now);
    taken += rate * static_cast<double>(tenant.session->needs().call);
    calls += rate;
  }
  if (more) {
    add(*more);
  }
  if (calls > 0) { // in coarse steps, since what calls leave is moved
    constexpr std::uint64_t kSteps = 8;
    const auto step = align_up(std::max<std::uint64_t>(sum.call / kSteps, 1), sum.unit);
    sum.usual_call = align_up(static_cast<std::uint64_t>(taken / calls), step);
  }
  sum.least_ring = std::max(sum.least_ring, held);
  sum.vram = budgets_.vram;
  sum.lanes = std::min(signals_.demand.callers(), transport_->gate().lanes());
  return sum;
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
