#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace offload {

/// A storage that a pickle refers to: the record of this key holds its bytes.
struct PickledStorage {
  std::string key;
  std::string type; ///< as PyTorch spells it: FloatStorage
  std::uint64_t numel = 0;
};

/// What a pickle of a TorchScript archive refers to.
struct PickleSummary {
  std::vector<PickledStorage> storages;
  std::set<std::string> globals; ///< module and name of classes and functions, with a space between
};

/// Follows a pickle without making anything of it, by the rules of PyTorch's reader: it is complete, its stack and
/// marks are never used beyond what was put there, it refers to nothing that was not said before, nests less than 1000
/// deep, and all tensors lie within their storages. Throws ArchiveError that says what is wrong, and where. None when
/// it holds what this function does not know, and somebody else has to judge.
std::optional<PickleSummary> read_pickle(std::string_view bytes, const std::string& name);

/// Throws ArchiveError unless the pickle is a table of source ranges, as the records NAME.py.debug_pkl have it.
void check_source_ranges(std::string_view bytes, const std::string& name);

/// Bytes of an element of a storage of this type; 0 when it is not known.
std::uint64_t element_bytes(std::string_view type);

} // namespace offload
