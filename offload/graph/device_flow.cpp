#include <offload/graph/device_flow.h>

#include <c10/util/sparse_bitset.h>
#include <torch/csrc/jit/ir/constants.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <unordered_map>

#include <offload/graph/attributes.h>
#include <offload/graph/host_arguments.h>
#include <offload/graph/operators.h>
#include <offload/tensor/values.h>

namespace offload {

using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;
namespace prim = torch::jit::prim;

namespace {

/// A tensor, what may hold some, or a device.
bool has_place(const c10::TypePtr& type) {
  const auto contained = type->containedTypes();
  return type->kind() == c10::TypeKind::TensorType || type->kind() == c10::TypeKind::ClassType || is_device(type) ||
         std::any_of(contained.begin(), contained.end(), has_place);
}

bool holds_scalars_only(const c10::IValue& value) {
  bool only = true;
  visit_tensors("", value, [&](const std::string&, const at::Tensor& tensor) {
    only = only && (!tensor.defined() || tensor.dim() == 0);
  });
  return only;
}

using Origins = c10::SparseBitVector<>; // by number

/// False when nothing was added; |= says so of what was empty and stays that.
bool add(Origins& into, const Origins& more) { return !more.empty() && (into |= more); }

class DeviceFlow {
 public:
  DeviceFlow(Graph& graph, c10::Device device) : graph_(graph), device_(device) {
    for (const Value* input : graph.inputs()) {
      facts_[input].on_device = has_place(input->type());
    }
    do { // loops carry values backwards
      changed_ = false;
      look_at(graph.block());
    } while (changed_);
  }

  DeviceChanges changes() {
    find_meetings();
    add_indices_of_what_stays();
    const Origins moved = moved_origins();
    DeviceChanges found;
    for (std::size_t origin = 0; origin < origins_.size(); ++origin) {
      if (!moved.test(origin)) {
        found.staying.emplace(origins_[origin].user, origins_[origin].offset);
      } else if (names_none(origins_[origin])) {
        found.made_without_device.push_back(origins_[origin]);
      }
    }
    std::copy_if(on_host_.begin(), on_host_.end(), std::back_inserter(found.to_copy),
                 [&](const torch::jit::Use& use) { return is_on_device(fact_of(use.user, use.offset), moved); });
    return found;
  }

 private:
  /// What decides where a value is: several things where they meet, or where the run picks. None of them: it is no
  /// tensor, or a scalar, which operators take from anywhere.
  struct Fact {
    bool on_device = false; // what the caller gives, and what the module holds
    bool on_host = false;   // results that are always there
    Origins origins = {};
    std::vector<Fact> elements = {}; // of a tuple whose elements are known one by one

    bool operator==(const Fact&) const = default;
  };

  static void merge(Fact& into, const Fact& more) {
    if (into == Fact() || more == Fact()) {
      into = into == Fact() ? more : into;
    } else if (into.elements.size() != more.elements.size()) {
      into = flat(into);
      merge(into, flat(more));
    } else {
      into.on_device = into.on_device || more.on_device;
      into.on_host = into.on_host || more.on_host;
      into.origins |= more.origins;
      for (std::size_t i = 0; i < into.elements.size(); ++i) {
        merge(into.elements[i], more.elements[i]);
      }
    }
  }

  /// All elements in one.
  static Fact flat(const Fact& fact) {
    Fact all = fact;
    all.elements.clear();
    for (const Fact& element : fact.elements) {
      merge(all, flat(element));
    }
    return all;
  }

  static Fact element_of(const Fact& tuple, std::size_t index) {
    return index < tuple.elements.size() ? tuple.elements[index] : flat(tuple);
  }

  void note(const Value* value, const Fact& more) {
    Fact& known = facts_[value];
    const Fact before = known;
    merge(known, more);
    changed_ = changed_ || known != before;
  }

  Fact origin_of(const torch::jit::Use& use) {
    const auto [entry, is_new] = numbers_.emplace(std::pair(use.user, use.offset), origins_.size());
    if (is_new) {
      origins_.push_back(use);
    }
    Fact fact;
    fact.origins.set(entry->second);
    return fact;
  }

  Fact fact_of(Node* user, std::size_t input) {
    const Value* value = user->input(input);
    if (value->node()->kind() != prim::Constant) {
      return facts_[value];
    }
    const auto constant = torch::jit::toIValue(value);
    if (constant && constant->isDevice() && !constant->toDevice().is_cpu()) {
      return {.on_device = true};
    }
    const bool is_origin = constant && has_place(value->type()) && !constant->isNone() &&
                           (constant->isDevice() || !holds_scalars_only(*constant));
    return is_origin ? origin_of({user, input}) : Fact();
  }

  void look_at(Block* block) {
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

  void look_at(Node* node) {
    if (node->kind() == prim::TupleConstruct) {
      Fact tuple;
      for (std::size_t i = 0; i < node->inputs().size(); ++i) {
        tuple.elements.push_back(fact_of(node, i));
      }
      note(node->output(), tuple);
    } else if (node->kind() == prim::TupleUnpack) {
      const Fact tuple = fact_of(node, 0);
      for (std::size_t i = 0; i < node->outputs().size(); ++i) {
        note(node->output(i), element_of(tuple, i));
      }
    } else if (node->kind() == prim::TupleIndex) {
      const auto index = torch::jit::toIValue(node->input(1));
      const Fact tuple = fact_of(node, 0);
      note(node->output(), index && index->toInt() >= 0 ? element_of(tuple, index->toInt()) : flat(tuple));
    } else {
      const Fact result = result_of(node);
      for (std::size_t i = 0; i < node->outputs().size(); ++i) {
        note(node->output(i), gives_on_host(node, i)               ? Fact{.on_host = true}
                              : has_place(node->output(i)->type()) ? result
                                                                   : Fact());
      }
      if (node->kind() == torch::jit::aten::append || node->kind() == torch::jit::aten::insert) {
        note(node->input(0), result);
      }
    }
  }

  Fact result_of(Node* node) {
    if (node->kind() == prim::GetAttr) {
      return {.on_device = true};
    }
    Fact fact;
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

  /// What has to be on the host, and nodes whose inputs have to be in one place.
  void find_meetings() {
    for_each_node(graph_.block(), [&](Node* node) {
      if (!node->maybeSchema()) {
        return;
      }
      std::vector<Fact> meeting;
      for (std::size_t i = 0; i < node->inputs().size(); ++i) {
        if (!has_place(node->input(i)->type()) || is_device(node->input(i)->type())) {
          continue;
        }
        const Wanted place = wanted_of(node, i, device_);
        const Fact fact = flat(fact_of(node, i));
        if (place == Wanted::on_host) {
          on_host_.emplace_back(node, i);
        }
        if (place == Wanted::on_host || place == Wanted::kernels_host) {
          wanted_ |= fact.origins;
        } else if (place == Wanted::anywhere) {
          meeting.push_back(fact);
        } else if (looks_up_by_index(node)) {
          lookups_.emplace_back(meeting.front(), fact);
        }
      }
      const auto device = device_input(node);
      if (meeting.size() > 1 && (!device || node->input(*device)->mustBeNone())) {
        meetings_.push_back(std::move(meeting));
      }
    });
  }

  /// Indices are wanted on the host where what they look up stays.
  void add_indices_of_what_stays() {
    for (bool changed = true; changed;) {
      changed = false;
      for (const auto& [table, indices] : lookups_) {
        if (!table.on_device && (table.on_host || table.origins.intersects(wanted_))) {
          changed = add(wanted_, indices.origins) || changed;
        }
      }
    }
  }

  /// What is wanted nowhere on the host, and what meets tensors of the device.
  Origins moved_origins() {
    Origins moved;
    for (std::size_t origin = 0; origin < origins_.size(); ++origin) {
      if (!wanted_.test(origin) && !names_none(origins_[origin])) {
        moved.set(origin);
      }
    }
    for (bool changed = true; changed;) {
      changed = false;
      for (const std::vector<Fact>& meeting : meetings_) {
        const bool there =
            std::any_of(meeting.begin(), meeting.end(), [&](const Fact& fact) { return is_on_device(fact, moved); });
        for (const Fact& fact : meeting) {
          changed = (there && add(moved, fact.origins)) || changed;
        }
      }
    }
    return moved;
  }

  static bool is_on_device(const Fact& fact, const Origins& moved) {
    return fact.on_device || fact.origins.intersects(moved);
  }

  static bool names_none(const torch::jit::Use& use) { return use.user->input(use.offset)->mustBeNone(); }

  Graph& graph_;
  const c10::Device device_;
  std::vector<torch::jit::Use> origins_; // of factories: the node, and its input that would name a device
  std::map<std::pair<const Node*, std::size_t>, std::size_t> numbers_; // of origins, by use
  std::unordered_map<const Value*, Fact> facts_;
  bool changed_ = false;

  std::vector<torch::jit::Use> on_host_;       // inputs that have to be there
  std::vector<std::pair<Fact, Fact>> lookups_; // tables and indices
  std::vector<std::vector<Fact>> meetings_;    // inputs that have to be in one place
  Origins wanted_;                             // on the host
};

} // namespace

DeviceChanges find_device_changes(Graph& graph, c10::Device device) { return DeviceFlow(graph, device).changes(); }

} // namespace offload
