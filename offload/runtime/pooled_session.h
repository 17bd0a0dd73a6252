#pragma once

#include <cstdint>
#include <string>

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
  std::uint64_t held_bytes() const { return state_.held_bytes(); }
  const HostLayout& host() const { return model_.host; }

  /// What it takes to bring so many of its bytes, alone on the link.
  double link_us(std::uint64_t bytes) const { return static_cast<double>(bytes) / model_.machine.link_bytes_per_us; }

  ResidentCurve curve(std::uint64_t ring_bytes) const;
  Plan plan(std::uint64_t bytes, std::uint64_t ring_bytes) const;

  /// Beside calls of the module.
  Engine::Slab prepare(const Residency& residency, const std::function<void(std::uint64_t bytes)>& on_part) const;

  /// What is resident from now on. No call of the module is in flight, on the device either.
  void install(Engine::Slab slab, Plan plan);
  void install_nothing(std::uint64_t ring_bytes);
  bool is_placed() const { return engine().placed(); }

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
  c10::IValue call(const Request& request) override;
  void report_streamed(Stats& stats) const override { state_.report_streamed(stats); }
  void record_peak() override;
  Made attempt(int lane, const Request& request, Lanes::Overflow overflow);
  c10::IValue call_alone(const Request& request);

  const std::shared_ptr<PoolManager> manager_;
};

} // namespace offload
