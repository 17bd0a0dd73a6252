#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <memory>
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

/// As much of a value as is needed to follow tensors and source ranges.
struct PickledValue {
  enum class Kind { other, constant, integer, text, tuple, list, global, storage } kind = Kind::other;
  std::int64_t integer = 0;
  std::string text;                                    ///< of a global: module, space, name
  std::vector<std::shared_ptr<PickledValue>> elements; ///< of a tuple or a list
  std::shared_ptr<const PickledStorage> storage;
  int depth = 1;
  bool contained = false; ///< in another value, which counts on its depth

  bool is_integer() const { return kind == Kind::integer; }
  bool is_text() const { return kind == Kind::text; }

  /// Or of more.
  bool is_tuple_of(std::size_t count) const { return kind == Kind::tuple && elements.size() >= count; }
  bool is_tuple_of(std::initializer_list<Kind> kinds) const {
    return is_tuple_of(kinds.size()) &&
           std::equal(kinds.begin(), kinds.end(), elements.begin(),
                      [](Kind wanted, const auto& element) { return element->kind == wanted; });
  }
};

/// What a pickle of a TorchScript archive holds.
struct PickleSummary {
  std::vector<PickledStorage> storages;
  std::set<std::string> globals; ///< module and name of classes and functions, with a space between
  std::shared_ptr<const PickledValue> root;
};

/// Steps that the pickles of an archive may take together: each makes a value at most, of a hundred bytes and more.
constexpr std::uint64_t kMostPickleSteps = 1 << 24;

/// Follows a pickle without making anything of it, by the rules of PyTorch's reader. Throws ArchiveError, which says
/// what is wrong and where, unless
///   - it is complete, and never uses more of its stack and marks than was put there;
///   - it refers only to what came before, and nests less than 1000 deep;
///   - it takes no more than `steps`, from which those that it takes are subtracted;
///   - it names types that nest no deeper than code may;
///   - all tensors, quantised ones too, lie within their storages.
/// None when it holds what this function does not know, and somebody else has to judge.
std::optional<PickleSummary> read_pickle(std::string_view bytes, const std::string& name, std::uint64_t& steps);

} // namespace offload
