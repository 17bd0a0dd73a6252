#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <offload/core/mutex.h>
#include <offload/core/promises.h>
#include <offload/options.h>
#include <offload/plan/device_budget.h>
#include <offload/plan/pool_division.h>
#include <offload/pool.h>
#include <offload/runtime/demand.h>
#include <offload/runtime/transport.h>

namespace offload {

class PooledSession;

/// What is placed of the modules of a pool.
///
/// Who changes that has the *turn*: who loads or ends a module, sets the budget, or makes a call for which all else has
/// to give way; else a thread that looks, when there were calls, where resident bytes would save most, and moves them
/// there, a part of one module at a time. It gives up the turn when somebody wants it. Calls go on meanwhile: a module
/// that gets or loses a part is closed for that moment, and only a new ring stops them all.
///
/// What modules take, the ring, and the room of the gate are together the budget.
class PoolManager {
 public:
  explicit PoolManager(const PoolOptions& options);
  ~PoolManager();
  PoolManager(const PoolManager&) = delete;
  PoolManager& operator=(const PoolManager&) = delete;

  c10::Device device() const { return device_; }
  const std::shared_ptr<Transport>& transport() const { return transport_; }

  /// Modules are loaded one after another: each gets what those before it have left.
  std::unique_lock<std::mutex> begin_to_load() { return std::unique_lock(turn_.loading); }

  /// What a module of the pool is made with. Throws InputError for options that it can not have.
  Options options_for(const Options& options) const;

  /// Has the turn for as long as it lives.
  class Turn {
   public:
    explicit Turn(PoolManager& manager) : manager_(manager) {
      ++manager_.turn_.waiting;
      lock_ = std::unique_lock(manager_.turn_.mutex);
      --manager_.turn_.waiting;
    }

   private:
    PoolManager& manager_;
    std::unique_lock<std::mutex> lock_;
  };

  /// Makes room for what always stays of a module that is about to be adopted. Throws BudgetError when it does not fit
  /// even if nothing else does. The caller has the turn from here until join().
  void admit(const PooledSession& session, const std::string& name);

  /// The module has been adopted: from now on it can be called, with nothing resident.
  void join(PooledSession& session, std::string name, const Options& options);

  /// Ends its membership: `detach` ends what it has of the transport, and of weights on the device, while no call is
  /// made, and then `end` what else there is. The caller has the turn.
  void leave(PooledSession& session, const std::function<void()>& detach, const std::function<void()>& end) noexcept;

  /// A call of it begins.
  void note_call(const PooledSession& session);

  /// What is known of it has changed.
  void note_change(const PooledSession& session);

  /// Makes a call, by `make`, while nothing else is on the device but what must stay and the smallest ring.
  c10::IValue alone(const std::function<c10::IValue()>& make);

  void set_most(const PooledSession& session, std::uint64_t bytes);
  void release(const PooledSession& session);

  std::uint64_t vram_budget() const;
  void set_vram_budget(std::uint64_t bytes);
  std::vector<PoolEntry> entries() const;
  Stats stats() const;
  void record_peak();

 private:
  using Clock = std::chrono::steady_clock;

  struct Wake {
    std::optional<Clock::time_point> since; // when nothing of a module was resident, and it was called
    double seconds = 0;                     // that the last one took
  };

  /// What became of bringing more of a module.
  struct Growth {
    Clock::time_point rests_until;          // it is not moved again before
    std::uint64_t in_vain = 0;              // so many bytes brought nothing more than it has
    std::uint64_t most = ~std::uint64_t{0}; // the device had no more when that was tried
    std::string problem;                    // of the last time; empty when it went well
  };

  struct Tenant {
    PooledSession* session;
    std::string name;
    double weight = 1;
    std::uint64_t most = 0;                     // that may be resident
    std::shared_ptr<const ResidentCurve> curve; // null when it has to be found out
    std::uint64_t placed = 0;                   // bytes that its resident weights take
    std::uint64_t calls = 0;
    double score = 0; // calls of late, at `last_call`
    Clock::time_point last_call = Clock::now();
    Growth growth;
    Wake wake;
    bool is_released = false; // and not called since

    double score_at(Clock::time_point now) const;
    double rate(Clock::time_point now) const;
  };
  using Tenants = std::list<Tenant>;

  /// What the thread is told.
  struct Signals {
    Demand demand;
    bool wanted = false; // somebody has called, or something else has changed
    bool stopping = false;
    std::uint64_t changes = 0; // of what is known of modules
  };

  struct Peak { // bytes on the device
    std::atomic<std::uint64_t> most = 0;
    std::atomic<std::uint64_t> coming = 0; // of weights that are being brought
  };

  struct Budgets {
    std::uint64_t vram = 0;
    std::optional<std::uint64_t> host;
    std::optional<std::uint64_t> pinned;
    std::uint64_t usual_call = 0; // see DeviceBudget
  };

  Tenant* find(const PooledSession& session) OFFLOAD_REQUIRES(mutex_);
  DeviceBudget needs(const PooledSession* more = nullptr) const;
  void require_minimum(std::uint64_t vram, const PooledSession* more, const std::string& name) const;
  std::uint64_t ring_for(const DeviceBudget& budget, bool least = false) const;
  std::uint64_t capacity(const DeviceBudget& budget) const;
  std::uint64_t placed() const;
  std::uint64_t room(const DeviceBudget& budget) const;
  void find_usual_call();
  void set_room();
  void start_ring(std::uint64_t bytes);
  void start_ring_of(std::uint64_t bytes);
  void evict(Tenant& tenant);
  void shrink(Tenant& tenant, std::uint64_t bytes);
  void change(Tenant& tenant, const std::function<void(PooledSession& session)>& alter);
  void evict_down_to(std::uint64_t bytes);
  std::vector<Claimant> claimants();
  /// How resident bytes would be divided now.
  struct Division {
    std::vector<Tenant*> tenants;
    std::vector<Claimant> claimants;  // the same
    std::vector<std::uint64_t> given; // to each
    std::uint64_t taken = 0;          // by all, as it is

    std::size_t victim() const;
    bool fits(std::size_t i, std::uint64_t capacity) const;
    double saved() const;
  };
  Division divide(std::uint64_t capacity);
  std::uint64_t part_of(const Tenant& tenant) const;

  enum class Move { none, made, later };
  Move rebalance();
  Move grow(Tenant& tenant, std::uint64_t bytes);
  bool take_from_calls(std::uint64_t bytes);
  std::function<void(std::uint64_t bytes)> beside_calls(const PooledSession& session);
  void tell_tenants();
  void signal();
  void want() OFFLOAD_REQUIRES(mutex_);
  void keep();

  const c10::Device device_;
  const std::shared_ptr<Transport> transport_;
  Promise promise_;
  struct {
    std::mutex loading; // before the turn: by who loads a module
    std::mutex mutex;
    std::atomic<int> waiting = 0; // for it
  } turn_;
  RingMemory ring_;     // of who has the turn
  mutable Mutex mutex_; // tenants are added and removed by who has the turn as well
  Condition changed_;
  Budgets budgets_;
  Tenants tenants_;
  Signals signals_ OFFLOAD_GUARDED_BY(mutex_);
  Peak peak_;
  std::thread thread_;
};

} // namespace offload
