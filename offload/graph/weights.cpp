#include <offload/graph/weights.h>

#include <algorithm>
#include <iterator>

#include <offload/tensor/values.h>

namespace offload {

namespace {

/// A storage, and a place in it.
using Place = std::pair<const void*, std::uint64_t>;

Place place_of(const at::Tensor& tensor, std::uint64_t byte) { return {tensor.storage().unsafeGetStorageImpl(), byte}; }

} // namespace

ModuleWeights find_weights(const Holders& holders, Extent extent) {
  ModuleWeights result;
  std::vector<std::pair<std::string, at::Tensor>> found;
  for (const c10::IValue& holder : holders) {
    visit_tensors(&holder == holders.data() ? "" : "constants", holder,
                  [&](const std::string& name, const at::Tensor& tensor) {
                    if (is_weight_like(tensor)) {
                      found.emplace_back(name, tensor);
                    } else if (tensor.defined()) {
                      result.others.push_back({name, tensor});
                    }
                  });
  }
  const auto range_of = [&](const at::Tensor& tensor) {
    const auto [begin, end] = byte_range(tensor);
    // What is read out of place begins where it would begin in memory.
    return extent == Extent::ranges
               ? std::pair(begin / kAlignment * kAlignment, end)
               : std::pair(std::uint64_t{0}, std::max<std::uint64_t>(end, tensor.storage().nbytes()));
  };
  std::map<Place, std::uint64_t> ends; // of ranges, by where they begin
  for (const auto& [name, tensor] : found) {
    const auto [begin, end] = range_of(tensor);
    std::uint64_t& furthest = ends[place_of(tensor, begin)];
    furthest = std::max(furthest, end);
  }
  for (auto range = ends.begin(); range != ends.end();) { // those that overlap are joined
    const auto next = std::next(range);
    if (next != ends.end() && next->first.first == range->first.first && next->first.second < range->second) {
      range->second = std::max(range->second, next->second);
      ends.erase(next);
    } else {
      range = next;
    }
  }
  std::map<Place, WeightId> numbers; // by where ranges begin
  for (const auto& [name, tensor] : found) {
    const auto range = std::prev(ends.upper_bound(place_of(tensor, range_of(tensor).first)));
    const auto [number, is_new] = numbers.emplace(range->first, static_cast<WeightId>(result.weights.size()));
    if (is_new) {
      result.weights.push_back({name, {}, tensor.storage(), range->first.second, range->second});
    } else {
      result.weights[number->second].aliases.push_back(name);
    }
    result.ids[place_of(tensor, byte_range(tensor).first)] = number->second;
  }
  return result;
}

std::optional<WeightId> ModuleWeights::find(const at::Tensor& tensor) const {
  if (!is_weight_like(tensor)) {
    return std::nullopt;
  }
  const auto found = ids.find(place_of(tensor, byte_range(tensor).first));
  return found == ids.end() ? std::nullopt : std::optional(found->second);
}

WeightSet ModuleWeights::reachable(const c10::IValue& value) const {
  WeightSet found;
  visit_tensors("", value, [&](const std::string&, const at::Tensor& tensor) {
    if (const auto id = find(tensor)) {
      found.insert(*id);
    }
  });
  return found;
}

std::uint64_t OtherTensor::bytes() const {
  if (tensor.layout() == at::kSparse) {
    return tensor._indices().nbytes() + tensor._values().nbytes();
  }
  return tensor.is_meta() || !tensor.has_storage() ? 0 : tensor.storage().nbytes();
}

void replace_tensors(const Holders& holders, const Replace& replace) {
  for (const c10::IValue& holder : holders) {
    map_tensors(holder, replace, [](const c10::IValue&) { return true; });
  }
}

} // namespace offload
