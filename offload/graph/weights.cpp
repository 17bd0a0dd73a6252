#include <offload/graph/weights.h>

#include <algorithm>
#include <functional>
#include <unordered_set>

namespace offload {

namespace {

using Visit = std::function<void(const std::string& name, const c10::IValue& value)>;

/// Calls `visit` for every tensor below `value`, each object once.
void visit_tensors(const std::string& name, const c10::IValue& value, std::unordered_set<const void*>& seen,
                   const Visit& visit) {
  const auto below = [&](const std::string& part) { return name.empty() ? part : name + "." + part; };
  if (value.isTensor()) {
    visit(name, value);
  } else if (value.isObject()) {
    const auto object = value.toObject();
    if (!seen.insert(object.get()).second) {
      return;
    }
    for (std::size_t slot = 0; slot < object->slots().size(); ++slot) {
      visit_tensors(below(object->type()->getAttributeName(slot)), object->getSlot(slot), seen, visit);
    }
  } else if (value.isList()) {
    const auto list = value.toListRef();
    for (std::size_t i = 0; i < list.size(); ++i) {
      visit_tensors(below(std::to_string(i)), list[i], seen, visit);
    }
  } else if (value.isTuple()) {
    const auto& elements = value.toTupleRef().elements();
    for (std::size_t i = 0; i < elements.size(); ++i) {
      visit_tensors(below(std::to_string(i)), elements[i], seen, visit);
    }
  } else if (value.isGenericDict()) {
    for (const auto& entry : value.toGenericDict()) {
      visit_tensors(below(entry.key().isString() ? entry.key().toStringRef() : "item"), entry.value(), seen, visit);
    }
  }
}

} // namespace

bool is_weight_like(const at::Tensor& tensor) {
  return tensor.defined() && tensor.layout() == at::kStrided && tensor.has_storage() && !tensor.is_quantized() &&
         !tensor.is_meta();
}

std::pair<std::uint64_t, std::uint64_t> byte_range(const at::Tensor& tensor) {
  const std::uint64_t item = tensor.element_size();
  const std::uint64_t begin = tensor.storage_offset() * item;
  if (tensor.numel() == 0) {
    return {begin, begin};
  }
  std::uint64_t last = tensor.storage_offset();
  for (std::int64_t dim = 0; dim < tensor.dim(); ++dim) {
    last += (tensor.size(dim) - 1) * tensor.stride(dim);
  }
  return {begin, (last + 1) * item};
}

ModuleWeights find_weights(const Holders& holders) {
  struct Found {
    std::string name;
    at::Tensor tensor;
    std::uint64_t begin;
    std::uint64_t end;
    std::size_t order;
  };
  std::vector<Found> found;
  std::unordered_set<const void*> seen;
  const auto take = [&](const std::string& name, const c10::IValue& value) {
    const at::Tensor& tensor = value.toTensor();
    if (is_weight_like(tensor)) {
      const auto [begin, end] = byte_range(tensor);
      found.push_back({name, tensor, begin, end, found.size()});
    }
  };
  for (const torch::jit::Module& holder : holders) {
    visit_tensors(&holder == holders.data() ? "" : "constants", holder._ivalue(), seen, take);
  }

  std::unordered_set<std::string> parameters;
  for (const auto& parameter : holders.front().named_parameters()) {
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
      result.ids[{storage_of(i), found[i].begin}] = static_cast<WeightId>(result.weights.size());
    }
    result.weights.push_back(std::move(weight));
  }
  return result;
}

WeightId ModuleWeights::id_of(const at::Tensor& tensor) const {
  return ids.at({tensor.storage().unsafeGetStorageImpl(), byte_range(tensor).first});
}

std::vector<WeightId> ModuleWeights::reachable(const c10::IValue& value) const {
  std::vector<WeightId> found;
  std::unordered_set<const void*> seen;
  visit_tensors("", value, seen, [&](const std::string&, const c10::IValue& tensor) {
    if (is_weight_like(tensor.toTensor())) {
      const WeightId id = id_of(tensor.toTensor());
      if (std::find(found.begin(), found.end(), id) == found.end()) {
        found.push_back(id);
      }
    }
  });
  return found;
}

namespace {

c10::IValue replaced(const c10::IValue& value, std::unordered_set<const void*>& seen,
                     const std::function<at::Tensor(const at::Tensor&)>& replace) {
  if (value.isTensor()) {
    return is_weight_like(value.toTensor()) ? c10::IValue(replace(value.toTensor())) : value;
  }
  if (value.isObject()) {
    const auto object = value.toObject();
    if (seen.insert(object.get()).second) {
      for (std::size_t slot = 0; slot < object->slots().size(); ++slot) {
        object->setSlot(slot, replaced(object->getSlot(slot), seen, replace));
      }
    }
    return value;
  }
  if (value.isTensorList()) {
    auto list = value.toTensorList(); // shared with whoever holds it: replaced in place
    for (std::size_t i = 0; i < list.size(); ++i) {
      list.set(i, replaced(list.get(i), seen, replace).toTensor());
    }
    return value;
  }
  if (value.isList()) {
    auto list = value.toList();
    for (std::size_t i = 0; i < list.size(); ++i) {
      list.set(i, replaced(list.get(i), seen, replace));
    }
    return value;
  }
  if (value.isTuple()) {
    std::vector<c10::IValue> elements;
    for (const c10::IValue& element : value.toTupleRef().elements()) {
      elements.push_back(replaced(element, seen, replace));
    }
    const auto type = value.toTupleRef().type<c10::TupleType>();
    return type->schema() ? c10::ivalue::Tuple::createNamed(std::move(elements), type)
                          : c10::ivalue::Tuple::create(std::move(elements));
  }
  if (value.isGenericDict()) {
    auto dict = value.toGenericDict();
    std::vector<std::pair<c10::IValue, c10::IValue>> entries;
    for (const auto& entry : dict) {
      entries.emplace_back(entry.key(), entry.value());
    }
    for (const auto& [key, entry] : entries) {
      dict.insert_or_assign(key, replaced(entry, seen, replace));
    }
  }
  return value;
}

} // namespace

void replace_tensors(const Holders& holders, const std::function<at::Tensor(const at::Tensor&)>& replace) {
  std::unordered_set<const void*> seen;
  for (const torch::jit::Module& holder : holders) {
    replaced(holder._ivalue(), seen, replace);
  }
}

} // namespace offload
