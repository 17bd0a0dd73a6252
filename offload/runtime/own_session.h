#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <offload/runtime/session.h>

namespace offload {

/// A module with a budget of its own.
///
/// Who plans holds all lanes. The first call of a module that has no example calls, and every example call, is a
/// *measuring call*: it runs alone, on a GPU with little more than the smallest ring, and shows the order of leases,
/// the work between them, and what activations take. Then the plan is made. So is a call for which the plan leaves no
/// room, once it has been stopped. All others show what they take.
class OwnSession final : public Session {
 public:
  /// What is made of the module.
  enum class Purpose {
    run,
    plan, ///< it answers placement() and planned() only; with example calls it is adopted, called, and put back, else,
          ///< and for a machine that is not here, left as it is
  };

  OwnSession(const torch::jit::Module& module, const Options& options, const std::optional<MachineProfile>& machine,
             Purpose purpose, Owner owner);

  /// Budget and plan, and what follows for others.
  const PlanState& planned() const { return state_; }

  Placement placement() override;
  void set_vram_budget(std::uint64_t bytes) override;
  void release() override;

 private:
  c10::IValue call(const Request& request) override;
  void report_streamed(Stats& stats) const override { transport_->report(stats); }
  void judge(Report& report, const Plan& plan, const Observations& observed) const override;
  std::vector<Advice> advise(const Plan& now, const Observations& observed) const;
  void record_peak() override;
  std::optional<c10::IValue> call_in_turn(const Request& request, std::uint64_t& exhausted_room);
  std::optional<c10::IValue> call_exclusive(const Request& request, std::uint64_t exhausted_room);
  c10::IValue measure(const Request& request);
  enum class Ring { ample, least };
  Residency residency_to_measure(Ring ring) const;
  void place(const Residency& residency, PlacedModule::Leased leased);
  void clear();
  void choose_budget(const Options& options);
  void record_by_sizes(const ExampleCall& example);
  std::uint64_t outside() const;
  void replan(std::optional<Plan> made = std::nullopt);
  void replan_beside_calls();

  Promise device_promise_;
};

} // namespace offload
