#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <tools/record.h>

namespace offload::tools {

/// One stack with one input, at several shares of its layers on the device: a table of the result.
struct Case {
  std::string title;
  std::int64_t layers;
  std::int64_t features;                   ///< weights are [features, features]
  std::int64_t input_rows;                 ///< the input is [input_rows, features]
  std::string dtype;                       ///< float32 or bfloat16
  std::vector<std::int64_t> layers_on_gpu; ///< ascending, so that high-water marks are those of the row
  std::vector<RecordRow> record;           ///< empty where the record has no such table
  bool reduced = false;                    ///< made smaller than the record for a host without a GPU

  std::uint64_t layer_bytes() const;
  std::uint64_t weight_bytes() const { return static_cast<std::uint64_t>(layers) * layer_bytes(); }

  /// The same work: what is measured for one holds for the other.
  bool same_work(const Case& other) const;

  /// Of the record; null where it has none.
  const RecordRow* find_record(Residence residence, std::int64_t on_gpu) const;
};

/// What of the benchmark is run.
struct Selection {
  std::vector<int> tables;        ///< of the record, 1 to 5
  std::vector<std::int64_t> rows; ///< of the input, for the stacks with few rows
  bool staged = false;            ///< the first table, all streamed, from ordinary memory
  std::vector<int> callers;       ///< at the same time, for the stacks with few rows; else empty
  std::vector<double> loads;      ///< of the calls a second that they reach, those that arrive at random
};

/// Reads `--table` ("1,2", "all"), `--rows` ("1,16,64"), `--staged`, `--callers` ("1,8") and `--load` ("0.5,0.8");
/// empty texts are options that were not given. None of them means everything but callers. Throws InputError that names
/// the token.
Selection parse_selection(const std::string& tables, const std::string& rows, bool staged, const std::string& callers,
                          const std::string& loads);

std::vector<Case> make_cases(const Selection& selection);

/// Throws InputError when `number` is not a table of the record.
Case record_case(int number);

/// The same shares of a stack that runs on a host in seconds and takes no more than a quarter of `available_bytes`.
Case reduce(const Case& original, std::uint64_t available_bytes);

/// What streamed bytes are given to pass through beside the share of the weights: room for one layer that is read, one
/// that is there and one under way, and for the copies of several small layers that travel together.
std::uint64_t default_ring_bytes(const Case& stack);

} // namespace offload::tools
