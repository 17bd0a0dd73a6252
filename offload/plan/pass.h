#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <vector>

#include <offload/core/lane_clock.h>
#include <offload/core/weight_table.h>
#include <offload/profile.h>

namespace offload {

/// What a device does for operators that lease nothing.
struct OtherOps {
  double flops = 0;
  double bytes = 0; ///< that they read and write
  int launches = 0;
};

/// A node that reads weights, as the graph has it or as a call has shown it.
struct LeasedStep {
  Step weights;                           ///< resident and streamed, each once
  double flops = 0;                       ///< 0 when unknown
  bool rows_only = false;                 ///< looks up rows
  double rows = 0;                        ///< that a product multiplies with the weights; 0 when unknown
  double bytes = 0;                       ///< that it reads and writes beside the weights
  OtherOps others = {};                   ///< until the next node that leases, as far as sizes tell
  std::optional<Lap> took = std::nullopt; ///< with those: that calls have shown; see Note [Costs of a step] in pass.cpp
};

/// What such a node costs, with all that follows until the next one.
struct PlanStep {
  Step weights;          ///< that it needs on the device, each once
  double compute_us = 0; ///< on the device, when all its weights are there
  double launch_us = 0;  ///< of the host, which is ahead of the device where it can be
};

/// A node whose weights the run picks: any of `weights`, each there once, but no more than `at_once` of them. See Note
/// [Alternatives] in graph/weight_flow.h.
struct Choice {
  Step weights;
  std::size_t at_once;

  auto operator<=>(const Choice&) const = default;
};

/// What is planned: weights, and the steps of one call that read them, in the order of execution.
struct Pass {
  WeightTablePtr weights = std::make_shared<const WeightTable>();
  std::vector<PlanStep> steps;
  std::vector<Choice> choices; ///< that a call may need too; they cost no time
  bool is_measured = false;    ///< what steps cost has been

  std::uint64_t bytes(WeightId weight) const { return (*weights)[weight].bytes; }
};

/// The steps with what they cost on `machine`: see Note [Costs of a step] in pass.cpp. Rows that the device looks up
/// where they lie on the host need no place.
Pass make_pass(WeightTablePtr weights, const std::vector<LeasedStep>& steps, const MachineProfile& machine);

/// The steps of a call that is given twice the rows.
std::vector<LeasedStep> with_twice_the_rows(const WeightTable& weights, std::vector<LeasedStep> steps,
                                            const MachineProfile& machine);

/// The steps with which the laps of a call begin: the first, which comes before any lease, with step 0; the others with
/// those that lease what streams.
std::vector<std::size_t> lap_begins(const Pass& pass, const Residency& residency);

/// Has `steps` cost what a call took that leased what streams with `residency`: `laps` are what came before its first
/// lease, and what came from each of them to the next. Of several calls, each lap is the shortest. What the device
/// waits for launches is none of its work. False, and nothing is changed, when the call has leased something else.
bool record_laps(std::vector<LeasedStep>& steps, const WeightTablePtr& weights, const Residency& residency,
                 const Laps& laps, const MachineProfile& machine);

/// The steps without the weights that are resident, and without the steps that are then empty; with ids that begin at
/// `first`.
Sequence streamed_sequence(const Pass& pass, const Residency& residency, WeightId first = 0);

/// All of `count` weights, in the order in which `steps` read them first; then those that none reads.
std::vector<WeightId> order_of_use(const std::vector<LeasedStep>& steps, std::size_t count);

} // namespace offload
