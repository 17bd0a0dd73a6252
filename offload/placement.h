#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

#include <offload/export.h>

namespace offload {

/// How the bytes of a segment reach the operator that reads them.
enum class Mode {
  resident, ///< they stay on the device
  streamed, ///< they are brought for each use: over the link, into the ring; or read from a mapping of the file
  in_place, ///< they stay in host memory; the operator reads the rows that it looks up from there
};

OFFLOAD_API const char* to_string(Mode mode);

/// A byte range of a weight with one mode.
struct Segment {
  Mode mode;
  std::uint64_t offset; ///< from the start of the weight
  std::uint64_t bytes;
};

/// An operator that reads a weight, and how it takes it.
struct Use {
  std::string op;    ///< "aten::conv2d"
  std::string taken; ///< "product": inside an operator that multiplies matrices; "leased" before it; "rows" of it

  bool operator==(const Use& other) const { return op == other.op && taken == other.taken; }
};

struct PlacedWeight {
  std::string name;                 ///< qualified name of the attribute, as in `named_parameters`
  std::vector<std::string> aliases; ///< other names of the same bytes (tied weights, views)
  std::uint64_t bytes = 0;          ///< of the weight itself
  std::vector<Use> uses;            ///< operators that read it, in the order of execution
  std::vector<Segment> segments;    ///< cover the weight in order, without gaps
};

/// A tensor of the module that is on the device for good, and why.
struct Resident {
  std::string name;
  std::uint64_t bytes;
  std::string because;
};

/// What a plan knows calls by.
enum class Evidence {
  none,  ///< the graph: what activations take is a default
  sizes, ///< the sizes of example calls
  calls, ///< that were made
};

OFFLOAD_API const char* to_string(Evidence evidence);

/// Where the budget goes; the parts below add up to at most `vram`.
struct Budget {
  std::uint64_t vram = 0;     ///< bytes allowed on the device
  std::uint64_t minimum = 0;  ///< the smallest `vram` that this model runs in
  std::uint64_t fixed = 0;    ///< small parameters, buffers, and what must be resident
  std::uint64_t resident = 0; ///< weights that the plan keeps on the device
  std::uint64_t ring = 0;     ///< device memory that streamed bytes pass through
  std::uint64_t reserve = 0;  ///< workspaces and activations of all lanes
  Evidence reserve_by = Evidence::none;
  std::uint64_t outside = 0; ///< in use on the device when planned, in no budget (Stats::outside_bytes), or assumed
  std::uint64_t host = 0;    ///< bytes of host memory that weights and staging take
  std::uint64_t pinned = 0;  ///< of these, page-locked
  std::uint64_t file = 0;    ///< bytes of weights that stay on the file, and are read when they are needed
};

/// Callers at the same time, each of which makes one call after the other.
struct PredictedRound {
  int callers = 1;
  int lanes = 1;                    ///< calls in flight at the same time, which room is kept for
  double time_us = 0;               ///< in which each caller makes one call
  std::uint64_t streamed_bytes = 0; ///< over the link, per call
};

struct Prediction {
  double time_us = 0;                  ///< of one call in a row of calls
  std::uint64_t peak_device_bytes = 0; ///< everything that counts against the budget
  std::uint64_t streamed_bytes = 0;    ///< over the link, per call: the mean of `period` calls
  std::uint64_t period = 1;            ///< calls after which a row of calls repeats itself
  PredictedRound round;                ///< of those that the module was planned for
};

/// The planned mode of every segment of every weight, what it needs, and what it should cost.
struct Placement {
  std::string device;  ///< as `c10::Device` prints it
  std::string machine; ///< whose costs the prediction uses
  std::vector<PlacedWeight> weights;
  std::vector<Resident> resident_because;
  std::vector<std::string> rewritten; ///< what was changed in the graphs for the device
  std::vector<std::string> unseen;    ///< classes of objects whose memory is in no figure: only their code sees it
  std::vector<std::string> unsized;   ///< why an example call could not be told from sizes: it counts by its graph
  bool writes_state = false;          ///< calls change the module, so their order matters
  Budget budget;
  Prediction predicted;
};

/// A table for people: totals, then a line for each run of weights with the same mode.
OFFLOAD_API std::ostream& operator<<(std::ostream& out, const Placement& placement);

/// The same, whole, as JSON.
OFFLOAD_API std::string to_json(const Placement& placement);

} // namespace offload
