// How a pool places rings and parts of modules; see pool_manager.h.

#include <c10/core/DeviceGuard.h>

#include <exception>
#include <functional>

#include <offload/bytes.h>
#include <offload/error.h>
#include <offload/runtime/pool_manager.h>
#include <offload/runtime/pooled_session.h>

namespace offload {

/// Through `bytes` from now on, for all modules as they are; where the device has not so much, through the least. The
/// caller has all calls exclusively.
void PoolManager::start_ring(std::uint64_t bytes) {
  transport_->lanes().release();
  transport_->stop();
  const std::uint64_t least = ring_for(needs(), /*least=*/true);
  try {
    start_ring_of(bytes);
  } catch (const Error&) {
    if (bytes <= least) {
      throw;
    }
    start_ring_of(least);
  }
  set_room();
}

void PoolManager::start_ring_of(std::uint64_t bytes) {
  if (ring_.bytes != bytes || ring_.owner.use_count() != 1) { // somebody has kept a lease, and reads it
    const c10::DeviceGuard guard(device_);
    ring_ = {};
    ring_.owner = std::make_shared<DeviceMemory>(device_.index(), bytes, "the ring of a pool");
    ring_.data = ring_.owner->data();
    ring_.bytes = bytes;
    const Lock lock(mutex_);
    ++signals_.changes;
    for (Tenant& tenant : tenants_) {
      tenant.curve.reset();
      tenant.growth = {};
    }
  }
  transport_->start(ring_);
}

/// Has `alter` change what is resident of it; nothing of it is where that throws. The caller has its calls exclusively.
void PoolManager::change(Tenant& tenant, const std::function<void(PooledSession& session)>& alter) {
  std::exception_ptr failure;
  try {
    alter(*tenant.session);
  } catch (...) {
    failure = std::current_exception();
    try {
      tenant.session->drop_all(ring_.bytes);
    } catch (const std::exception&) { // not even that: its next call places it
    }
  }
  {
    const Lock lock(mutex_);
    tenant.placed = tenant.session->placed_bytes();
    tenant.growth.in_vain = 0;
    if (tenant.placed > 0 && tenant.wake.since) {
      tenant.wake.seconds = std::chrono::duration<double>(Clock::now() - *tenant.wake.since).count();
      tenant.wake.since.reset();
    }
  }
  set_room();
  if (failure) {
    std::rethrow_exception(failure);
  }
}

/// Nothing of it is resident any more. The caller has its calls exclusively.
void PoolManager::evict(Tenant& tenant) {
  transport_->lanes().synchronize();
  change(tenant, [&](PooledSession& session) { session.drop_all(ring_.bytes); });
}

/// To at most `bytes`, by parts, those that came last first. The caller has its calls exclusively.
void PoolManager::shrink(Tenant& tenant, std::uint64_t bytes) {
  transport_->lanes().synchronize();
  change(tenant, [&](PooledSession& session) { session.drop_down_to(bytes, ring_.bytes); });
}

/// The caller has all calls exclusively.
void PoolManager::evict_down_to(std::uint64_t bytes) {
  while (placed() > bytes) {
    Tenant* least = nullptr;
    {
      const Lock lock(mutex_);
      const auto now = Clock::now();
      for (Tenant& tenant : tenants_) {
        if (tenant.placed > 0 && (!least || tenant.rate(now) < least->rate(now))) {
          least = &tenant;
        }
      }
    }
    shrink(*least, left_of(least->placed, placed() - bytes));
  }
}

} // namespace offload
