#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <offload/core/promises.h>
#include <offload/module.h>
#include <offload/profile.h>
#include <offload/runtime/adopt.h>
#include <offload/runtime/executor.h>
#include <offload/runtime/model.h>
#include <offload/runtime/plan_state.h>
#include <offload/runtime/sequences.h>

namespace offload {

/// A module that has been taken in: its calls, one beside the other, and who plans and places anew between them. Any
/// thread may call.
///
/// Calls come through a gate, each with a lane. Who plans holds all lanes. The first call of a module that has no
/// example calls, and every example call, is a *measuring call*: it runs alone, on a GPU with little more than the
/// smallest ring, and shows the order of leases, the work between them, and what activations take. Then the plan is
/// made. So is a call for which the plan leaves no room, once it has been stopped. All others show what they take.
class Session {
 public:
  /// What is made of the module.
  enum class Purpose {
    run,
    plan, ///< it answers placement() only; with example calls it is adopted, called, and put back, else left as it is
  };

  Session(const torch::jit::Module& module, const Options& options, const std::optional<MachineProfile>& machine,
          Purpose purpose, Owner owner);
  ~Session();

  c10::IValue run_method(const std::string& name, std::vector<c10::IValue> inputs, const Kwargs& kwargs);
  c10::IValue attr(const std::string& name) const;
  const c10::FunctionSchema& schema(const std::string& method) const;
  Placement placement() const { return state_.placement(); }
  Stats stats() const;
  Report report() const;
  void set_vram_budget(std::uint64_t bytes);
  void release();
  c10::Device device() const { return model_.device; }

  /// For tests: from the n-th allocation of the next call on, as if the first lane could have no more.
  void refuse_from(std::uint64_t n) { lanes().refuse_from(0, n); }

 private:
  using Readiness = PlanState::Readiness;

  void require_no_call_around(const char* wanted) const;
  Made make_call(int lane, const Request& request, Lanes::Overflow overflow, std::vector<LeasedStep>* trace);
  std::optional<c10::IValue> call_in_turn(const Request& request, std::uint64_t& exhausted_room);
  std::optional<c10::IValue> call_exclusive(const Request& request, std::uint64_t exhausted_room);
  c10::IValue measure(const Request& request);
  void measure_example(const ExampleCall& call);
  enum class Ring { ample, least };
  Residency residency_to_measure(Ring ring) const;
  void place(const Residency& residency, PlacedModule::Leased leased);
  void clear();
  void choose_budget(const Options& options);
  void replan();
  void record_peak();
  bool has_lost_places() const {
    return !engine().placed() || !transport_->started() || transport_->streamer()->lost();
  }
  Engine& engine() const { return *adopted_->engine; }
  LaneGate& gate() const { return transport_->gate(); }
  Lanes& lanes() const { return transport_->lanes(); }

  Promise host_promise_{kHost};
  Model model_;
  const bool may_overflow_; // a measuring call may put activations that find no room into page-locked host memory
  Promise device_promise_;
  std::unique_ptr<Transport> transport_; // null where nothing was adopted
  std::unique_ptr<Adopted> adopted_;     // the same
  Sequences sequences_;
  PlanState state_;
  mutable std::mutex placed_mutex_;
  std::pair<Stats, std::chrono::steady_clock::time_point> placed_{
      {}, std::chrono::steady_clock::now()}; // what was counted when weights were last placed
};

} // namespace offload
