#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include <offload/plan/pool_division.h>
#include <offload/runtime/pool_manager.h>
#include <offload/runtime/session.h>

namespace offload {

/// A module of a pool, which decides what of it is resident. Calls are made with whatever is; one that finds too little
/// room for its activations is made again alone.
class PooledSession final : public Session {
 public:
  /// `file`: the name of the archive that it comes from; empty where it comes from none.
  PooledSession(const torch::jit::Module& module, const Options& options, Owner owner, const std::string& file);
  ~PooledSession() override;

  /// The most that its weights may take of the pool's budget.
  void set_vram_budget(std::uint64_t bytes) override;
  void release() override;

  // For the pool's manager, which has the turn.

  /// What of the device it needs, whatever is resident.
  DeviceBudget needs() const { return state_.budget(); }

  /// What the largest call takes; 0 while none has been seen.
  std::uint64_t largest_call() const { return state_.largest_call(); }
  std::uint64_t weight_bytes() const { return bytes_of(all_resident(*model_.weights)); }
  std::uint64_t host_bytes() const { return bytes_taken_on_host(all_resident(*model_.weights), *model_.weights); }
  std::uint64_t held_bytes() const { return held_bytes_; }
  const HostLayout& host() const { return model_.host; }

  /// What it takes to bring so many of its bytes, alone on the link.
  double link_us(std::uint64_t bytes) const { return static_cast<double>(bytes) / model_.machine.link_bytes_per_us; }

  ResidentCurve curve(std::uint64_t ring_bytes) const;

  /// What best comes to what is resident, of at most `bytes`, in parts of about `part` bytes: each is the best beside
  /// those before it.
  std::vector<Residency> more(std::uint64_t bytes, std::uint64_t part, std::uint64_t ring_bytes) const;

  /// Brings a part, beside calls of the module.
  Engine::Slab prepare(const Residency& residency, const std::function<void(std::uint64_t bytes)>& on_part) const;

  /// These alter what is resident, while no call of the module is in flight. Where they throw, nothing is placed. What
  /// drops parts comes when the device is done with its calls as well: those that came last, so that the others take at
  /// most `bytes`; or all.
  void add(std::vector<Engine::Slab> parts, std::uint64_t ring_bytes);
  void drop_down_to(std::uint64_t bytes, std::uint64_t ring_bytes);
  void drop_all(std::uint64_t ring_bytes);

  /// Beside calls: what the last of these changes does to calls, for who asks for the placement.
  bool is_predicted() const { return is_predicted_; }
  void predict(std::uint64_t ring_bytes);

  /// True when calls lease more than they have to, to show what they do, and have shown it: lease_less() ends that,
  /// while no call is in flight.
  bool may_lease_less() const;
  void lease_less(std::uint64_t ring_bytes);

  bool is_placed() const { return engine().placed(); }

  /// What is resident, and what it takes in the units of the device.
  std::uint64_t resident_bytes() const { return engine().resident_bytes(); }
  std::uint64_t placed_bytes() const { return engine().placed_bytes(); }

  /// True when the weights that go to host memory are there.
  bool is_filled() const { return engine().is_filled(); }

  /// What others of the pool leave it, and take.
  void give(std::uint64_t bytes, std::uint64_t others) { state_.give({bytes, std::nullopt, others}); }

 private:
  PooledSession(const torch::jit::Module& module, const Options& options, Owner owner, const std::string& file,
                const std::shared_ptr<PoolManager>& manager);
  PooledSession(const torch::jit::Module& module, const Options& options, Owner owner, const std::string& file,
                std::shared_ptr<PoolManager> manager, std::unique_lock<std::mutex> loading);
  void leave() noexcept;
  bool has_shown_steps() const;
  Residency resident() const;
  Plan plan(const Residency& kept, std::uint64_t bytes, std::uint64_t ring_bytes) const;
  void alter(const std::function<void(Engine& engine, const Placeholders& known)>& change, std::uint64_t ring_bytes);
  c10::IValue call(const Request& request) override;
  void report_streamed(Stats& stats) const override { state_.report_streamed(stats); }
  void record_peak() override;
  Made attempt(int lane, const Request& request, Lanes::Overflow overflow);
  c10::IValue call_alone(const Request& request);

  const std::shared_ptr<PoolManager> manager_;
  const std::uint64_t held_bytes_;         // others ask for it until the end
  std::atomic<bool> is_predicted_ = false; // of what is resident
};

} // namespace offload
