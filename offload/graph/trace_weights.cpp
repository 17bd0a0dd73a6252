#include <offload/graph/trace_weights.h>

#include <ATen/core/function_schema.h>
#include <torch/csrc/jit/ir/constants.h>

#include <algorithm>
#include <unordered_set>

#include <offload/graph/attributes.h>

namespace offload {

using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;
namespace prim = torch::jit::prim;

namespace {

using Symbols = std::unordered_set<c10::Symbol>;

Symbols symbols(std::initializer_list<const char*> names) {
  Symbols result;
  for (const char* name : names) {
    result.insert(c10::Symbol::fromQualString(name));
  }
  return result;
}

/// They ask for what a placeholder knows too.
bool is_metadata(const Node* node) {
  static const Symbols kKinds = symbols({"aten::size",
                                         "aten::dim",
                                         "aten::numel",
                                         "aten::stride",
                                         "aten::storage_offset",
                                         "aten::len",
                                         "aten::__is__",
                                         "aten::__isnot__",
                                         "aten::is_floating_point",
                                         "aten::is_complex",
                                         "aten::is_contiguous",
                                         "aten::sym_size",
                                         "aten::element_size",
                                         "aten::get_device",
                                         "prim::device",
                                         "prim::dtype",
                                         "prim::layout",
                                         "prim::requires_grad",
                                         "prim::is_cuda",
                                         "prim::is_cpu",
                                         "prim::is_nested",
                                         "prim::is_sparse",
                                         "prim::is_quantized",
                                         "prim::is_meta",
                                         "prim::is_mkldnn",
                                         "prim::is_xpu",
                                         "prim::is_mps",
                                         "prim::itemsize",
                                         "prim::ndim",
                                         "prim::nbytes",
                                         "prim::isinstance",
                                         "aten::has_torch_function",
                                         "prim::type",
                                         "aten::is_autocast_enabled"});
  return kKinds.count(node->kind()) > 0;
}

/// Their outputs are the weight again: views, and containers of it.
bool passes_on(const Node* node) {
  static const Symbols kKinds = symbols({"prim::ListConstruct",
                                         "prim::TupleConstruct",
                                         "prim::DictConstruct",
                                         "prim::ListUnpack",
                                         "prim::TupleUnpack",
                                         "prim::TupleIndex",
                                         "prim::TupleSlice",
                                         "aten::__getitem__",
                                         "prim::unchecked_cast",
                                         "aten::list",
                                         "prim::ConstantChunk",
                                         "aten::t",
                                         "aten::numpy_T",
                                         "aten::transpose",
                                         "aten::permute",
                                         "aten::view",
                                         "aten::slice",
                                         "aten::select",
                                         "aten::narrow",
                                         "aten::unsqueeze",
                                         "aten::squeeze",
                                         "aten::expand",
                                         "aten::chunk",
                                         "aten::split",
                                         "aten::split_with_sizes",
                                         "aten::unbind",
                                         "aten::detach",
                                         "aten::alias",
                                         "aten::swapaxes",
                                         "aten::movedim",
                                         "prim::data",
                                         "prim::Uninitialized"});
  return kKinds.count(node->kind()) > 0;
}

/// They may return their input where its schema does not say so.
bool may_return_input(const Node* node) {
  static const Symbols kKinds = symbols({"aten::to",
                                         "aten::contiguous",
                                         "aten::reshape",
                                         "aten::reshape_as",
                                         "aten::type_as",
                                         "aten::flatten",
                                         "aten::dropout",
                                         "aten::feature_dropout",
                                         "aten::alpha_dropout",
                                         "aten::expand_as",
                                         "aten::view_as",
                                         "aten::cpu",
                                         "aten::cuda",
                                         "aten::float",
                                         "aten::half",
                                         "aten::_autocast_to_reduced_precision",
                                         "aten::_autocast_to_full_precision",
                                         "aten::ravel",
                                         "aten::real",
                                         "aten::resolve_conj",
                                         "aten::resolve_neg",
                                         "aten::lift_fresh",
                                         "aten::broadcast_to",
                                         "aten::pin_memory"});
  return kKinds.count(node->kind()) > 0;
}

/// Running statistics are written in training mode without a word in the schema.
bool writes_in_silence(const Node* node, std::size_t input) {
  static const Symbols kKinds =
      symbols({"aten::batch_norm", "aten::native_batch_norm", "aten::_native_batch_norm_legit", "aten::instance_norm",
               "aten::cudnn_batch_norm", "aten::_batch_norm_impl_index", "aten::sync_batch_norm"});
  if ((input != 3 && input != 4) || kKinds.count(node->kind()) == 0) {
    return false;
  }
  const auto training = node->inputs().size() > 5 ? torch::jit::toIValue(node->input(5)) : std::nullopt;
  return !training || !training->isBool() || training->toBool();
}

bool writes_input(const Node* node, std::size_t input) {
  const c10::FunctionSchema* schema = node->maybeSchema();
  const bool annotated = schema && input < schema->arguments().size() && schema->arguments()[input].alias_info() &&
                         schema->arguments()[input].alias_info()->isWrite();
  return annotated || writes_in_silence(node, input);
}

/// A module picked out of a container, and only compared with others: what is left of a call through an interface.
bool is_index_for_comparison(const Node* node) {
  static const Symbols kKinds = symbols({"prim::ModuleContainerIndex", "prim::unchecked_cast"});
  const auto& uses = node->outputs().size() == 1 ? node->output()->uses() : torch::jit::use_list();
  return kKinds.count(node->kind()) > 0 && std::all_of(uses.begin(), uses.end(), [](const torch::jit::Use& use) {
           return use.user->kind() == torch::jit::aten::__is__ || is_index_for_comparison(use.user);
         });
}

bool can_lease(const c10::TypePtr& type) {
  if (const auto optional = type->cast<c10::OptionalType>()) {
    return optional->getElementType()->kind() == c10::TypeKind::TensorType;
  }
  if (const auto list = type->cast<c10::ListType>()) {
    return list->getElementType()->kind() == c10::TypeKind::TensorType;
  }
  return type->kind() == c10::TypeKind::TensorType;
}

class Tracer {
 public:
  Tracer(Graph& graph, const Holders& holders, const ModuleWeights& weights)
      : graph_(graph), weights_(weights), attributes_(graph, holders) {
    for (const torch::jit::Module& holder : holders) {
      find_objects(holder._ivalue());
    }
  }

  WeightTrace run() {
    // Loops carry values backwards: repeat until nothing is added.
    do {
      changed_ = false;
      pass_on(graph_.block());
    } while (changed_);
    for_each_node(graph_.block(), [&](Node* node) { look_at(node); });
    return std::move(trace_);
  }

 private:
  using Set = std::set<WeightId>;

  void add(std::unordered_map<const Value*, Set>& carried, const Value* to, const Set& ids) {
    Set& set = carried[to];
    const std::size_t before = set.size();
    set.insert(ids.begin(), ids.end());
    changed_ = changed_ || set.size() != before;
  }

  void flow(const Value* from, const Value* to) {
    for (auto* carried : {&carries_, &may_alias_}) {
      if (const auto found = carried->find(from); found != carried->end()) {
        const Set ids = found->second;
        add(*carried, to, ids);
      }
    }
  }

  void pass_on(Block* block) {
    for (Node* node : block->nodes()) {
      if (node->kind() == prim::GetAttr) {
        const c10::IValue* value = attributes_.value_of(node->output());
        if (value && !value->isObject()) {
          const auto ids = weights_.reachable(*value);
          if (!ids.empty()) {
            add(carries_, node->output(), Set(ids.begin(), ids.end()));
            add(may_alias_, node->output(), Set(ids.begin(), ids.end()));
          }
        }
      } else if (node->kind() == prim::If) {
        for (Block* branch : node->blocks()) {
          pass_on(branch);
          for (std::size_t i = 0; i < node->outputs().size(); ++i) {
            flow(branch->outputs()[i], node->outputs()[i]);
          }
        }
      } else if (node->kind() == prim::Loop) {
        Block* body = node->blocks()[0];
        for (std::size_t i = 0; i < node->outputs().size(); ++i) {
          flow(node->inputs()[i + 2], body->inputs()[i + 1]);
          flow(body->outputs()[i + 1], body->inputs()[i + 1]);
        }
        pass_on(body);
        for (std::size_t i = 0; i < node->outputs().size(); ++i) {
          flow(node->inputs()[i + 2], node->outputs()[i]);
          flow(body->outputs()[i + 1], node->outputs()[i]);
        }
      } else if (passes_on(node)) {
        for (const Value* input : node->inputs()) {
          for (const Value* output : node->outputs()) {
            flow(input, output);
          }
        }
      } else {
        flow_aliases(node);
      }
    }
  }

  /// Outputs that may share the memory that a lease gave: a write to them is a write to the weight.
  void flow_aliases(Node* node) {
    const c10::FunctionSchema* schema = node->maybeSchema();
    for (std::size_t i = 0; i < node->inputs().size(); ++i) {
      const auto found = may_alias_.find(node->inputs()[i]);
      if (found == may_alias_.end()) {
        continue;
      }
      const bool annotated = schema && i < schema->arguments().size() && schema->arguments()[i].alias_info() != nullptr;
      if (annotated || may_return_input(node)) {
        const Set ids = found->second;
        for (const Value* output : node->outputs()) {
          add(may_alias_, output, ids);
        }
      }
    }
  }

  void keep(const Set& ids, const std::string& because) {
    for (const WeightId id : ids) {
      trace_.resident_because.emplace(id, because);
    }
  }

  void look_at(Node* node) {
    look_at_objects(node);
    if (node->kind() == prim::GetAttr && !attributes_.value_of(node->output())) {
      look_at_unknown_object(node);
    }
    if (node->kind() == prim::SetAttr) {
      // Objects that the call makes for itself, as for `with torch.autocast`, are gone with it.
      trace_.writes_state = trace_.writes_state || node->input(0)->node()->kind() != prim::CreateObject;
      look_at_set_attribute(node);
      return;
    }
    const c10::FunctionSchema* schema = node->maybeSchema();
    for (std::size_t i = 0; i < node->inputs().size(); ++i) {
      const bool is_attribute = attributes_.value_of(node->inputs()[i]) != nullptr;
      trace_.writes_state = trace_.writes_state || (is_attribute && writes_input(node, i));
      const auto found = may_alias_.find(node->inputs()[i]);
      if (found == may_alias_.end()) {
        continue;
      }
      if (writes_input(node, i)) {
        trace_.writes_state = true;
        keep(found->second, std::string("written by ") + node->kind().toQualString());
      }
    }
    if (passes_on(node) || is_metadata(node) || node->kind() == prim::If || node->kind() == prim::Loop ||
        node->kind() == prim::GetAttr) {
      return;
    }
    Reader reader{node, {}};
    for (std::size_t i = 0; i < node->inputs().size(); ++i) {
      const auto found = carries_.find(node->inputs()[i]);
      if (found == carries_.end()) {
        continue;
      }
      const c10::TypePtr& type = node->inputs()[i]->type();
      const bool is_list = type->kind() == c10::TypeKind::ListType;
      if (!schema || !can_lease(type)) {
        keep(found->second, std::string("handed to ") + node->kind().toQualString());
      } else if (found->second.size() > 1 && !is_list) {
        keep(found->second, std::string("picked at run time for ") + node->kind().toQualString());
      } else {
        reader.inputs.push_back({i, Step(found->second.begin(), found->second.end())});
      }
    }
    if (!reader.inputs.empty()) {
      trace_.readers.push_back(std::move(reader));
    }
  }

  /// What is stored in an attribute, and the weight whose attribute is bound anew.
  void look_at_set_attribute(Node* node) {
    const std::string& name = node->s(torch::jit::attr::name);
    if (const auto found = may_alias_.find(node->input(1)); found != may_alias_.end()) {
      keep(found->second, "stored in attribute " + name);
    }
    const c10::IValue* object = attributes_.value_of(node->input(0));
    if (object && object->isObject()) {
      const auto ids = weights_.reachable(object->toObject()->getAttr(name));
      keep(Set(ids.begin(), ids.end()), "attribute " + name + " is assigned");
    }
  }

  /// A module that goes anywhere but into GetAttr and SetAttr takes its weights out of sight.
  void look_at_objects(Node* node) {
    if (node->kind() == prim::GetAttr || is_metadata(node) || is_index_for_comparison(node)) {
      return;
    }
    for (std::size_t i = 0; i < node->inputs().size(); ++i) {
      if (node->kind() == prim::SetAttr && i == 0) {
        continue;
      }
      const c10::IValue* value = attributes_.value_of(node->inputs()[i]);
      if (value && value->isObject()) {
        const auto ids = weights_.reachable(*value);
        keep(Set(ids.begin(), ids.end()), std::string("reached through ") + node->kind().toQualString());
      }
    }
  }

  /// An attribute of an object that only the run picks: it may be that of any object of the type.
  void look_at_unknown_object(Node* node) {
    const std::string& name = node->s(torch::jit::attr::name);
    for (const c10::IValue& object : objects_) {
      const auto type = object.toObjectRef().type();
      if (type == node->input(0)->type() && type->hasAttribute(name)) {
        const auto ids = weights_.reachable(object.toObjectRef().getAttr(name));
        keep(Set(ids.begin(), ids.end()), "belongs to an object that is picked at run time");
      }
    }
  }

  void find_objects(const c10::IValue& value) {
    if (value.isObject()) {
      if (seen_.insert(value.toObject().get()).second) {
        objects_.push_back(value);
        for (const c10::IValue& slot : value.toObjectRef().slots()) {
          find_objects(slot);
        }
      }
    } else if (value.isList()) {
      for (const c10::IValue& element : value.toListRef()) {
        find_objects(element);
      }
    } else if (value.isTuple()) {
      for (const c10::IValue& element : value.toTupleRef().elements()) {
        find_objects(element);
      }
    } else if (value.isGenericDict()) {
      for (const auto& entry : value.toGenericDict()) {
        find_objects(entry.value());
      }
    }
  }

  Graph& graph_;
  const ModuleWeights& weights_;
  std::vector<c10::IValue> objects_; // all that the holders reach
  std::unordered_set<const void*> seen_;
  const Attributes attributes_;
  std::unordered_map<const Value*, Set> carries_;   // values that are weights, as placeholders
  std::unordered_map<const Value*, Set> may_alias_; // and those that may share their memory
  bool changed_ = false;
  WeightTrace trace_;
};

} // namespace

WeightTrace trace_weights(Graph& graph, const Holders& holders, const ModuleWeights& weights) {
  return Tracer(graph, holders, weights).run();
}

} // namespace offload
