#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace offload {

/// Throws ArchiveError unless the pickle is a table of source ranges, as the records NAME.py.debug_pkl have it. PyTorch
/// reads it when there is an error to report, from a function that must not throw, and uses its numbers unchecked.
/// `steps` is as for read_pickle(). Source of the format: torch/csrc/jit/serialization/source_range_serialization.cpp.
void check_source_ranges(std::string_view bytes, const std::string& name, std::uint64_t& steps);

} // namespace offload
