#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <offload/core/weight_table.h>

namespace offload {

/// What decides where a weight lies on the host.
struct HostWeight {
  std::uint64_t bytes = 0;      ///< of its place on the device; 0 when it stays there
  std::uint64_t begin = 0;      ///< in its file, or its storage in the module
  std::uint64_t true_bytes = 0; ///< there
  bool is_in_file = false;      ///< and not read yet
  bool can_stay_in_module = false;
  bool has_rows_looked_up = false; ///< by some node
};

struct HostBudgets {
  bool device_is_host = false;
  std::optional<std::uint64_t> host;   ///< Options::host_budget
  std::optional<std::uint64_t> pinned; ///< Options::pinned_budget
  std::uint64_t free = 0;              ///< bytes of host memory, promised to nobody
};

/// Where all weights lie on the host, and what that takes.
struct HostLayout {
  std::vector<Source> sources;
  std::uint64_t in_memory = 0;      ///< bytes of weights
  std::uint64_t in_module = 0;      ///< of them, in memory that the module has for them
  std::uint64_t pinned_weights = 0; ///< of the memory for weights, the first so many are page-locked
  std::uint64_t staging = 0;        ///< page-locked buffers
  std::uint64_t reading = 0;        ///< buffers to read the file

  std::uint64_t total() const { return in_memory + staging + reading; }
  std::uint64_t pinned() const { return pinned_weights + staging; }

  /// That the system has yet to give.
  std::uint64_t wanted() const { return in_memory - in_module + staging; }
};

/// Weights in memory lie in the order `by_use`, which has all of them: what is fetched together lies together.
///
/// On a host that is its own device, all that lies in the file stays there, since the ring is filled from it directly;
/// except for tables of which rows are looked up. For a GPU only that stays in the file for which host memory has no
/// room: the last in the order. Throws InputError when a budget is too small.
HostLayout lay_out_host(const std::vector<HostWeight>& weights, const std::vector<WeightId>& by_use,
                        const HostBudgets& budgets);

} // namespace offload
