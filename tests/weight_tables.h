#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <offload/core/weight_table.h>

namespace offload::test {

/// Weights "w0", "w1", ... of so many bytes, one after the other in host memory, where the link reads them.
inline WeightTable table_of(const std::vector<std::uint64_t>& bytes) {
  WeightTable table;
  std::uint64_t end = 0;
  for (const std::uint64_t each : bytes) {
    table.push_back(
        {"w" + std::to_string(table.size()), each, Arithmetic::fp32, {Source::Kind::memory, true, end, each}});
    end += each;
  }
  return table;
}

inline WeightTablePtr shared_table(const std::vector<std::uint64_t>& bytes) {
  return std::make_shared<const WeightTable>(table_of(bytes));
}

} // namespace offload::test
