#include <offload/graph/weights.h>

#include <torch/csrc/jit/api/module.h>

#include <algorithm>
#include <unordered_set>

#include <offload/tensor/values.h>

namespace offload {

ModuleWeights find_weights(const Holders& holders, Extent extent) {
  struct Found {
    std::string name;
    at::Tensor tensor;
    std::uint64_t begin;
    std::uint64_t end;
    std::uint64_t first_byte;
    std::size_t order;
  };
  std::vector<Found> found;
  std::vector<OtherTensor> others;
  const auto take = [&](const std::string& name, const at::Tensor& tensor) {
    if (is_weight_like(tensor)) {
      const auto [begin, end] = byte_range(tensor);
      const std::uint64_t storage_end = std::max<std::uint64_t>(end, tensor.storage().nbytes());
      const bool whole = extent == Extent::storages;
      // What is read out of place begins where it would begin in memory.
      found.push_back(
          {name, tensor, whole ? 0 : begin / kAlignment * kAlignment, whole ? storage_end : end, begin, found.size()});
    } else if (tensor.defined()) {
      others.push_back({name, tensor});
    }
  };
  for (const c10::IValue& holder : holders) {
    visit_tensors(&holder == holders.data() ? "" : "constants", holder, take);
  }

  std::unordered_set<std::string> parameters;
  for (const auto& parameter : holders.front().toModule().named_parameters()) {
    parameters.insert(parameter.name);
  }

  // Ranges of one storage that overlap are joined; then weights are numbered in the order in which they were found.
  std::vector<std::size_t> by_range(found.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    by_range[i] = i;
  }
  const auto storage_of = [&](std::size_t i) { return found[i].tensor.storage().unsafeGetStorageImpl(); };
  std::sort(by_range.begin(), by_range.end(), [&](std::size_t a, std::size_t b) {
    return std::tuple(storage_of(a), found[a].begin, a) < std::tuple(storage_of(b), found[b].begin, b);
  });
  struct Group {
    std::vector<std::size_t> members;
    std::uint64_t begin;
    std::uint64_t end;
  };
  std::vector<Group> groups;
  for (const std::size_t i : by_range) {
    Group* last = groups.empty() ? nullptr : &groups.back();
    const bool joins = last && storage_of(last->members.front()) == storage_of(i) &&
                       (found[i].begin < last->end || found[i].begin == last->begin);
    if (joins) {
      last->members.push_back(i);
      last->end = std::max(last->end, found[i].end);
    } else {
      groups.push_back({{i}, found[i].begin, found[i].end});
    }
  }
  for (Group& group : groups) {
    std::sort(group.members.begin(), group.members.end());
  }
  std::sort(groups.begin(), groups.end(),
            [](const Group& a, const Group& b) { return a.members.front() < b.members.front(); });

  ModuleWeights result;
  for (const Group& group : groups) {
    const Found& first = found[group.members.front()];
    Weight weight{first.name, {}, first.tensor.storage(), group.begin, group.end, false};
    for (const std::size_t i : group.members) {
      if (i != group.members.front()) {
        weight.aliases.push_back(found[i].name);
      }
      weight.is_parameter = weight.is_parameter || parameters.count(found[i].name) > 0;
      result.ids[{storage_of(i), found[i].first_byte}] = static_cast<WeightId>(result.weights.size());
    }
    result.weights.push_back(std::move(weight));
  }
  result.others = std::move(others);
  return result;
}

std::optional<WeightId> ModuleWeights::find(const at::Tensor& tensor) const {
  if (!is_weight_like(tensor)) {
    return std::nullopt;
  }
  const auto found = ids.find({tensor.storage().unsafeGetStorageImpl(), byte_range(tensor).first});
  return found == ids.end() ? std::nullopt : std::optional(found->second);
}

std::vector<WeightId> ModuleWeights::reachable(const c10::IValue& value) const {
  std::vector<WeightId> found;
  visit_tensors("", value, [&](const std::string&, const at::Tensor& tensor) {
    const auto id = find(tensor);
    if (id && std::find(found.begin(), found.end(), *id) == found.end()) {
      found.push_back(*id);
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

void replace_tensors(const Holders& holders, const std::function<at::Tensor(const at::Tensor&)>& replace) {
  for (const c10::IValue& holder : holders) {
    map_tensors(holder, replace, [](const c10::IValue&) { return true; });
  }
}

} // namespace offload
