#include <offload/runtime/pool_manager.h>

#include <c10/cuda/CUDACachingAllocator.h>

#include <algorithm>
#include <utility>

#include <offload/bytes.h>
#include <offload/core/start_thread.h>
#include <offload/device/cuda_calls.h>
#include <offload/error.h>
#include <offload/feed/stores.h>
#include <offload/preview.h>
#include <offload/runtime/free_bytes.h>
#include <offload/runtime/outside_bytes.h>
#include <offload/runtime/pooled_session.h>

namespace offload {

namespace {

/// Page-locked, and so within what may be.
std::uint64_t staging_for(c10::Device device, const PoolOptions& options) {
  const std::uint64_t most = options.pinned_budget.value_or(options.host_budget.value_or(kStagingBytes));
  if (device.is_cpu()) {
    return 0;
  }
  if (most < kLeastStagingBytes) {
    throw InputError("a pool takes " + format_bytes(kLeastStagingBytes) + " of page-locked memory to stage: raise " +
                     "host_budget or pinned_budget");
  }
  constexpr std::uint64_t kStep = kStagingBuffers * kPageBytes;
  return std::min(most, kStagingBytes) / kStep * kStep;
}

c10::Device device_for(const PoolOptions& options) {
  Options of_module;
  of_module.device = options.device;
  const c10::Device device = device_of(of_module);
  if (device.is_cuda()) {
    require_cuda();
  }
  if (options.concurrency < 1 || options.concurrency > 64) {
    throw InputError("concurrency is " + std::to_string(options.concurrency) + ": give 1 to 64");
  }
  if (options.vram_budget && *options.vram_budget == 0) {
    throw InputError("vram_budget is 0: leave it out for what is free, or give bytes");
  }
  return device;
}

} // namespace

PoolManager::PoolManager(const PoolOptions& options)
    : device_(device_for(options)),
      transport_(std::make_shared<Transport>(device_, options.concurrency, staging_for(device_, options))),
      promise_(device_.is_cuda() ? device_.index() : kHost),
      budgets_{0, options.host_budget, options.pinned_budget},
      signals_{Demand(1)} {
  if (device_.is_cuda()) {
    prepare_device(device_);                       // before others are kept from taking memory
    c10::cuda::CUDACachingAllocator::emptyCache(); // it gives back what is asked for in vain: it counts as free
  }
  promise_.set_by([&](std::uint64_t outstanding) {
    budgets_.vram =
        options.vram_budget ? *options.vram_budget : left_of(left_of(free_bytes(device_), outstanding), kMargin);
    return device_.is_cuda() ? budgets_.vram : 0;
  });
  thread_ = start_thread<std::thread>("the pool", [this] { keep(); });
}

PoolManager::~PoolManager() {
  {
    const Lock lock(mutex_);
    signals_.stopping = true;
    changed_.notify_all();
  }
  thread_.join();
}

Options PoolManager::options_for(const Options& options) const {
  const auto refuse = [](const char* what) {
    throw InputError(std::string(what) + " is the pool's for a module that lives in one: leave it out, or the pool");
  };
  if (options.device && device_of(options) != device_) {
    refuse("device");
  }
  if (options.concurrency) {
    refuse("concurrency");
  }
  if (options.host_budget || options.pinned_budget) {
    refuse("host_budget or pinned_budget");
  }
  if (options.rule != Rule::fastest) {
    refuse("rule");
  }
  if (!(options.weight > 0)) {
    throw InputError("weight is " + std::to_string(options.weight) + ": give more than 0");
  }
  Options of_module = options;
  of_module.device = device_;
  of_module.concurrency = transport_->gate().lanes();
  of_module.host_budget = budgets_.host;
  of_module.pinned_budget = budgets_.pinned;
  const Lock lock(mutex_);
  for (const Tenant& tenant : tenants_) { // staging is common to all: who comes next counts it again
    const HostLayout& host = tenant.session->host();
    if (budgets_.host) {
      of_module.host_budget = left_of(*of_module.host_budget, host.in_memory + host.reading);
    }
    if (budgets_.pinned) {
      of_module.pinned_budget = left_of(*of_module.pinned_budget, host.pinned_weights);
    }
  }
  return of_module;
}

PoolManager::Tenant* PoolManager::find(const PooledSession& session) {
  const auto tenant = std::find_if(tenants_.begin(), tenants_.end(),
                                   [&](const Tenant& candidate) { return candidate.session == &session; });
  return tenant == tenants_.end() ? nullptr : &*tenant;
}

void PoolManager::admit(const PooledSession& session, const std::string& name) {
  require_minimum(budgets_.vram, &session, name);
  const DeviceBudget with_it = needs(&session);
  const ExclusiveLaneLock alone(transport_->gate());
  const std::uint64_t ring = ring_for(with_it);
  evict_down_to(left_of(with_it.capacity(), ring));
  start_ring(ring);
  transport_->gate().set_room(room(with_it));
}

void PoolManager::join(PooledSession& session, std::string name, const Options& options) {
  {
    const ExclusiveLaneLock alone(transport_->gate());
    session.drop_all(ring_.bytes);
    {
      const Lock lock(mutex_);
      Tenant& tenant = tenants_.emplace_back();
      tenant.session = &session;
      tenant.name = std::move(name);
      tenant.weight = options.weight;
      tenant.most = options.vram_budget.value_or(~std::uint64_t{0});
    }
    try {
      start_ring(ring_for(needs()));
    } catch (...) {
      const Lock lock(mutex_);
      tenants_.pop_back();
      throw;
    }
  }
  tell_tenants();
  signal();
}

void PoolManager::leave(PooledSession& session, const std::function<void()>& detach,
                        const std::function<void()>& end) noexcept {
  const std::uint64_t fixed = session.needs().fixed; // there until the end
  {
    const ExclusiveLaneLock alone(transport_->gate());
    {
      const Lock lock(mutex_);
      tenants_.remove_if([&](const Tenant& tenant) { return tenant.session == &session; });
    }
    detach();
    try {
      start_ring(ring_for(needs()));
    } catch (const std::exception&) { // the next call of the others tries again, and reports
    }
    transport_->gate().set_room(left_of(transport_->gate().room(), fixed));
  }
  end();
  set_room();
  tell_tenants();
  signal();
}

/// What each may take of the budget while nothing of the others is resident.
void PoolManager::tell_tenants() {
  const DeviceBudget all = needs();
  const Lock lock(mutex_);
  std::uint64_t on_host = 0;
  for (const Tenant& tenant : tenants_) {
    const DeviceBudget its = tenant.session->needs();
    const std::uint64_t of_others =
        all.fixed - its.fixed + align_up(all.least_ring, all.unit) - align_up(its.least_ring, its.unit);
    tenant.session->give(left_of(budgets_.vram, of_others), of_others);
    on_host += tenant.session->host_bytes();
  }
  promise_.set(device_.is_cuda() ? budgets_.vram : std::min(budgets_.vram, on_host));
}

void PoolManager::note_call(const PooledSession& session) {
  const int callers = transport_->gate().callers() + 1;
  const Lock lock(mutex_);
  signals_.demand.record(std::min(callers, 64));
  Tenant& tenant = *find(session);
  const auto now = Clock::now();
  tenant.score = tenant.score_at(now) + 1;
  tenant.last_call = now;
  tenant.is_released = false;
  ++tenant.calls;
  if (tenant.placed == 0 && !tenant.wake.since) {
    tenant.wake.since = now;
  }
  want();
}

void PoolManager::note_change(const PooledSession& session) {
  const Lock lock(mutex_);
  if (Tenant* tenant = find(session)) {
    tenant->curve.reset();
    tenant->growth.in_vain = 0;
    ++signals_.changes;
  }
  want();
}

void PoolManager::signal() {
  const Lock lock(mutex_);
  want();
}

void PoolManager::want() {
  if (!std::exchange(signals_.wanted, true)) {
    changed_.notify_all();
  }
}

c10::IValue PoolManager::alone(const std::function<c10::IValue()>& make) {
  const Turn turn(*this);
  const ExclusiveLaneLock all(transport_->gate());
  for (Tenant& tenant : tenants_) {
    if (tenant.placed > 0 || !tenant.session->is_placed()) {
      evict(tenant);
    }
  }
  start_ring(ring_for(needs(), /*least=*/true));
  signal(); // once it has been made, others have what it leaves
  return make();
}

void PoolManager::set_most(const PooledSession& session, std::uint64_t bytes) {
  const Turn turn(*this);
  Tenant* tenant = nullptr;
  {
    const Lock lock(mutex_);
    tenant = find(session);
    tenant->most = bytes;
    tenant->growth = {};
  }
  if (const std::uint64_t most = align_up(bytes, granularity(device_)); tenant->placed > most) {
    const ExclusiveLaneLock closed(transport_->gate(), &session);
    shrink(*tenant, most);
  }
  signal();
}

void PoolManager::release(const PooledSession& session) {
  const Turn turn(*this);
  const ExclusiveLaneLock closed(transport_->gate(), &session);
  Tenant* tenant = nullptr;
  {
    const Lock lock(mutex_);
    tenant = find(session);
    tenant->is_released = true;
    tenant->growth = {};
    tenant->wake.since.reset();
  }
  evict(*tenant);
}

std::uint64_t PoolManager::vram_budget() const {
  const Lock lock(mutex_);
  return budgets_.vram;
}

void PoolManager::set_vram_budget(std::uint64_t bytes) {
  if (is_within_call_on(*transport_)) {
    throw Error("a new budget of a pool from within a call of one of its modules would wait for that call for ever: " +
                std::string("set it when the call has returned"));
  }
  const Turn turn(*this);
  require_minimum(bytes, nullptr, "its modules");
  const std::uint64_t before = vram_budget();
  const auto set = [&](std::uint64_t vram) {
    const ExclusiveLaneLock alone(transport_->gate());
    {
      const Lock lock(mutex_);
      budgets_.vram = vram;
    }
    const DeviceBudget budget = needs();
    const std::uint64_t ring = ring_for(budget);
    evict_down_to(left_of(budget.capacity(), ring));
    if (device_.is_cuda()) {
      promise_.raise_to(vram); // before it is taken
    }
    start_ring(ring);
    peak_.most = 0;
    const Lock lock(mutex_);
    for (Tenant& tenant : tenants_) {
      tenant.growth = {};
    }
  };
  try {
    set(bytes);
  } catch (...) {
    set(before); // what fitted before; if even that has gone, its error says so
    throw;
  }
  tell_tenants();
  signal();
}

} // namespace offload
