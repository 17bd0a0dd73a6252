// What a pool says of itself; see pool_manager.h.

#include <offload/runtime/outside_bytes.h>
#include <offload/runtime/pool_manager.h>
#include <offload/runtime/pooled_session.h>

namespace offload {

std::vector<PoolEntry> PoolManager::entries() const {
  std::vector<PoolEntry> entries;
  const auto now = Clock::now();
  const Lock lock(mutex_);
  for (const Tenant& tenant : tenants_) {
    entries.push_back({tenant.name, tenant.session->weight_bytes(), tenant.session->resident_bytes(), tenant.calls,
                       std::chrono::duration<double>(now - tenant.last_call).count(), tenant.wake.seconds,
                       tenant.growth.problem});
  }
  return entries;
}

Stats PoolManager::stats() const {
  Stats sum;
  transport_->report(sum);
  const Lock lock(mutex_);
  for (const Tenant& tenant : tenants_) {
    const Stats of = tenant.session->counted();
    sum.calls += of.calls;
    sum.calls_repeated += of.calls_repeated;
    sum.wait_turn_us += of.wait_turn_us;
    sum.bytes_in_place += of.bytes_in_place;
    sum.bytes_in_cache += of.bytes_in_cache;
    sum.bytes_resident += of.bytes_resident;
  }
  sum.peak_device_bytes = peak_.most;
  sum.outside_bytes = outside_bytes(device_);
  return sum;
}

void PoolManager::record_peak() {
  const std::uint64_t now = needs().fixed + ring_.bytes + placed() + peak_.coming + transport_->lanes().held();
  std::uint64_t peak = peak_.most;
  while (now > peak && !peak_.most.compare_exchange_weak(peak, now)) {
  }
}

} // namespace offload
