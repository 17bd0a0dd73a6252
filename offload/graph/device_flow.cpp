#include <offload/graph/device_flow.h>

#include <torch/csrc/jit/ir/constants.h>

#include <algorithm>

#include <offload/graph/attributes.h>
#include <offload/graph/host_arguments.h>
#include <offload/tensor/values.h>

namespace offload {

using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;
namespace prim = torch::jit::prim;

namespace {

bool names_device(const c10::TypePtr& type) {
  const auto optional = type->cast<c10::OptionalType>();
  return (optional ? optional->getElementType() : type)->kind() == c10::TypeKind::DeviceObjType;
}

/// A tensor, what may hold some, or a device.
bool has_place(const c10::TypePtr& type) {
  const auto contained = type->containedTypes();
  return type->kind() == c10::TypeKind::TensorType || type->kind() == c10::TypeKind::ClassType || names_device(type) ||
         std::any_of(contained.begin(), contained.end(), has_place);
}

bool holds_scalars_only(const c10::IValue& value) {
  bool only = true;
  visit_tensors("", value, [&](const std::string&, const at::Tensor& tensor) {
    only = only && (!tensor.defined() || tensor.dim() == 0);
  });
  return only;
}

template <typename Bits>
bool meet(const Bits& one, const Bits& other) {
  for (std::size_t i = 0; i < std::min(one.size(), other.size()); ++i) {
    if (one[i] && other[i]) {
      return true;
    }
  }
  return false;
}

/// False when nothing was added.
template <typename Bits>
bool add(Bits& into, const Bits& more) {
  bool added = false;
  into.resize(std::max(into.size(), more.size()));
  for (std::size_t i = 0; i < more.size(); ++i) {
    added = added || (more[i] && !into[i]);
    into[i] = into[i] || more[i];
  }
  return added;
}

} // namespace

DeviceFlow::DeviceFlow(Graph& graph, c10::Device device) : device_(device) {
  for (const Value* input : graph.inputs()) {
    facts_[input].on_device = has_place(input->type());
  }
  do { // loops carry values backwards
    changed_ = false;
    look_at(graph.block());
  } while (changed_);
  find_what_stays(graph);
}

bool DeviceFlow::stays(const torch::jit::Use& use) const {
  const auto numbers = numbers_.find(use.user);
  const auto number = numbers == numbers_.end() ? std::size_t{0} : numbers->second.count(use.offset);
  return number > 0 && !moved_[numbers->second.at(use.offset)];
}

void DeviceFlow::merge(Fact& into, const Fact& more) {
  const bool same_elements = into.elements.size() == more.elements.size();
  const bool nothing_yet = into == Fact();
  if (nothing_yet || more == Fact()) {
    into = nothing_yet ? more : into;
    return;
  }
  if (!same_elements) {
    into = flat(into);
  }
  const Fact& rest = same_elements ? more : flat(more);
  into.on_device = into.on_device || rest.on_device;
  into.on_host = into.on_host || rest.on_host;
  add(into.origins, rest.origins);
  for (std::size_t i = 0; i < into.elements.size(); ++i) {
    merge(into.elements[i], rest.elements[i]);
  }
}

/// All elements in one.
DeviceFlow::Fact DeviceFlow::flat(const Fact& fact) {
  Fact all = fact;
  all.elements.clear();
  for (const Fact& element : fact.elements) {
    merge(all, flat(element));
  }
  return all;
}

DeviceFlow::Fact DeviceFlow::element_of(const Fact& tuple, std::size_t index) {
  return index < tuple.elements.size() ? tuple.elements[index] : flat(tuple);
}

void DeviceFlow::note(const Value* value, const Fact& more) {
  Fact& known = facts_[value];
  const Fact before = known;
  merge(known, more);
  changed_ = changed_ || known != before;
}

DeviceFlow::Fact DeviceFlow::origin_of(const torch::jit::Use& use) {
  const auto [number, is_new] = numbers_[use.user].emplace(use.offset, origins_.size());
  if (is_new) {
    origins_.push_back(use);
  }
  Fact fact;
  fact.origins.resize(number->second + 1);
  fact.origins[number->second] = true;
  return fact;
}

DeviceFlow::Fact DeviceFlow::fact_of(Node* user, std::size_t input) {
  const Value* value = user->input(input);
  if (value->node()->kind() != prim::Constant) {
    return facts_[value];
  }
  const auto constant = torch::jit::toIValue(value);
  Fact fact;
  if (constant && constant->isDevice()) {
    fact.on_device = !constant->toDevice().is_cpu();
    return fact.on_device ? fact : origin_of({user, input});
  }
  return constant && has_place(value->type()) && !constant->isNone() && !holds_scalars_only(*constant)
             ? origin_of({user, input})
             : fact;
}

void DeviceFlow::look_at(Block* block) {
  for (Node* node : block->nodes()) {
    if (node->kind() == prim::If) {
      for (Block* branch : node->blocks()) {
        look_at(branch);
        for (std::size_t i = 0; i < node->outputs().size(); ++i) {
          note(node->output(i), fact_of(branch->return_node(), i));
        }
      }
    } else if (node->kind() == prim::Loop) {
      Block* body = node->blocks()[0];
      for (std::size_t i = 0; i < node->outputs().size(); ++i) {
        note(body->inputs()[i + 1], fact_of(node, i + 2));
      }
      look_at(body);
      for (std::size_t i = 0; i < node->outputs().size(); ++i) {
        const Fact next = fact_of(body->return_node(), i + 1);
        note(body->inputs()[i + 1], next);
        note(node->output(i), next);
        note(node->output(i), fact_of(node, i + 2)); // of no rounds
      }
    } else if (node->kind() != prim::Constant) {
      look_at(node);
    }
  }
}

void DeviceFlow::look_at(Node* node) {
  if (node->kind() == prim::TupleConstruct) {
    Fact tuple;
    for (std::size_t i = 0; i < node->inputs().size(); ++i) {
      tuple.elements.push_back(fact_of(node, i));
    }
    note(node->output(), tuple);
    return;
  }
  if (node->kind() == prim::TupleUnpack) {
    const Fact tuple = fact_of(node, 0);
    for (std::size_t i = 0; i < node->outputs().size(); ++i) {
      note(node->output(i), element_of(tuple, i));
    }
    return;
  }
  if (node->kind() == prim::TupleIndex) {
    const auto index = torch::jit::toIValue(node->input(1));
    const Fact tuple = fact_of(node, 0);
    note(node->output(), index && index->toInt() >= 0 ? element_of(tuple, index->toInt()) : flat(tuple));
    return;
  }
  const Fact result = result_of(node);
  for (std::size_t i = 0; i < node->outputs().size(); ++i) {
    Fact fact = has_place(node->output(i)->type()) ? result : Fact();
    if (gives_on_host(node, i)) {
      fact = Fact();
      fact.on_host = true;
    }
    note(node->output(i), fact);
  }
  if (node->kind() == torch::jit::aten::append || node->kind() == torch::jit::aten::insert) {
    note(node->input(0), result);
  }
}

DeviceFlow::Fact DeviceFlow::result_of(Node* node) {
  Fact fact;
  if (node->kind() == prim::GetAttr) {
    fact.on_device = true;
    return fact;
  }
  if (gives_scalar(node)) {
    return fact;
  }
  if (const auto input = device_input(node)) {
    if (!node->input(*input)->mustBeNone()) {
      return fact_of(node, *input);
    }
    const bool takes_tensors = std::any_of(node->inputs().begin(), node->inputs().end(), [](const Value* value) {
      return value->type()->kind() == c10::TypeKind::TensorType;
    });
    if (!takes_tensors && is_factory(node)) {
      return origin_of({node, *input});
    }
    fact.on_host = !takes_tensors;
  }
  for (std::size_t i = 0; i < node->inputs().size(); ++i) {
    const Wanted wanted = wanted_of(node, i, device_);
    if (wanted == Wanted::anywhere && has_place(node->input(i)->type())) {
      merge(fact, fact_of(node, i));
    } else if (wanted == Wanted::kernels_host) {
      fact.on_host = true;
    } else {
      fact_of(node, i); // numbers it, if it is an origin
    }
  }
  return fact;
}

bool DeviceFlow::is_on_device(const Fact& fact, const Origins& moved) const {
  return fact.on_device || meet(fact.origins, moved);
}

void DeviceFlow::find_what_stays(Graph& graph) {
  // What has to be on the host; and nodes whose inputs have to be in one place.
  struct Meeting {
    Node* node;
    std::vector<Fact> inputs;
  };
  std::vector<torch::jit::Use> on_host;
  std::vector<Meeting> lookups;
  std::vector<Meeting> meetings;
  Origins wanted;
  for_each_node(graph.block(), [&](Node* node) {
    if (!node->maybeSchema()) {
      return;
    }
    Meeting meeting{node, {}};
    for (std::size_t i = 0; i < node->inputs().size(); ++i) {
      if (!has_place(node->input(i)->type()) || names_device(node->input(i)->type())) {
        continue;
      }
      const Wanted place = wanted_of(node, i, device_);
      const Fact fact = flat(fact_of(node, i));
      if (place == Wanted::on_host) {
        on_host.emplace_back(node, i);
      }
      if (place == Wanted::on_host || place == Wanted::kernels_host) {
        add(wanted, fact.origins);
      } else if (place == Wanted::anywhere) {
        meeting.inputs.push_back(fact);
      } else if (looks_up_by_index(node)) {
        lookups.push_back({node, {meeting.inputs.front(), fact}});
      }
    }
    const auto device = device_input(node);
    if (meeting.inputs.size() > 1 && (!device || node->input(*device)->mustBeNone())) {
      meetings.push_back(std::move(meeting));
    }
  });
  bool changed = true;
  while (changed) { // indices are wanted where what they look up stays
    changed = false;
    for (const Meeting& lookup : lookups) {
      const Fact& table = lookup.inputs[0];
      if (!table.on_device && (table.on_host || meet(table.origins, wanted))) {
        changed = add(wanted, lookup.inputs[1].origins) || changed;
      }
    }
  }
  const auto names_none = [&](std::size_t origin) {
    return origins_[origin].user->input(origins_[origin].offset)->mustBeNone();
  };
  moved_.assign(origins_.size(), false);
  wanted.resize(origins_.size());
  for (std::size_t origin = 0; origin < origins_.size(); ++origin) {
    moved_[origin] = !wanted[origin] && !names_none(origin);
  }
  changed = true;
  while (changed) { // what meets tensors of the device goes there
    changed = false;
    for (const Meeting& meeting : meetings) {
      const bool there = std::any_of(meeting.inputs.begin(), meeting.inputs.end(),
                                     [&](const Fact& fact) { return is_on_device(fact, moved_); });
      for (const Fact& fact : meeting.inputs) {
        changed = (there && add(moved_, fact.origins)) || changed;
      }
    }
  }
  for (std::size_t origin = 0; origin < origins_.size(); ++origin) {
    if (moved_[origin] && names_none(origin)) {
      made_without_device_.push_back(origins_[origin]);
    }
  }
  std::copy_if(on_host.begin(), on_host.end(), std::back_inserter(to_copy_),
               [&](const torch::jit::Use& use) { return is_on_device(fact_of(use.user, use.offset), moved_); });
}

} // namespace offload
