#include <offload/graph/inline_calls.h>

#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/passes/inliner.h>

#include <algorithm>
#include <vector>

#include <offload/graph/attributes.h>

namespace offload {

using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;
namespace prim = torch::jit::prim;
namespace aten = torch::jit::aten;
namespace attr = torch::jit::attr;

namespace {

const c10::Symbol kCompleted = c10::Symbol::fromQualString("offload::completed");

/// Calls that an inlined body brings are inlined in the next round. What recurses ends here.
constexpr int kRounds = 16;
constexpr std::size_t kCalls = 512;

std::vector<Node*> nodes_where(Graph& graph, const std::function<bool(const Node*)>& wanted) {
  std::vector<Node*> found;
  for_each_node(graph.block(), [&](Node* node) {
    if (wanted(node)) {
      found.push_back(node);
    }
  });
  return found;
}

void inline_fork(Graph& graph, Node* fork) {
  const torch::jit::WithInsertPoint at(fork);
  const std::vector<Value*> outputs = torch::jit::insertGraph(graph, *fork->g(attr::Subgraph), fork->inputs());
  Node* completed = graph.insertNode(graph.create(kCompleted, {outputs.at(0)}, 1));
  completed->output()->setType(fork->output()->type());
  fork->output()->replaceAllUsesWith(completed->output());
  fork->destroy();
}

/// A module that a call may mean: where it is below the root, and what it is.
struct Target {
  std::vector<std::string> path;
  torch::jit::Module module;
};

bool is_interface_call(const Node* node) {
  return node->kind() == prim::CallMethod && node->input(0)->type()->kind() == c10::TypeKind::InterfaceType;
}

class InterfaceCall {
 public:
  InterfaceCall(Graph& graph, Node* call, const torch::jit::Module& root, const Attributes& attributes,
                const AttributeNames& written)
      : graph_(graph), call_(call), root_(root), attributes_(attributes), written_(written) {}

  void replace() {
    const torch::jit::WithInsertPoint at(call_);
    Value* output = choose(targets(), 0);
    call_->output()->replaceAllUsesWith(output);
    call_->destroy();
  }

 private:
  std::vector<Target> targets() const {
    std::vector<Target> targets;
    const auto interface = call_->input(0)->type()->expect<c10::InterfaceType>();
    // An attribute that is never assigned, or the children of a container that is indexed; else whatever fits.
    const Node* source = call_->input(0)->node();
    while (source->kind() == prim::unchecked_cast) {
      source = source->input(0)->node();
    }
    const c10::IValue* container =
        source->kind() == prim::ModuleContainerIndex ? attributes_.value_of(source->input(0)) : nullptr;
    const c10::IValue* attribute = source->kind() == prim::GetAttr && !is_assigned(source->s(attr::name))
                                       ? attributes_.value_of(source->output())
                                       : nullptr;
    for (const auto& [name, module] : root_.named_modules()) {
      const bool may_be_it = attribute   ? attribute->is(module._ivalue())
                             : container ? is_child(*container, module)
                                         : true;
      if (!may_be_it || !module.type()->isSubtypeOf(*interface)) {
        continue;
      }
      Target target{{}, module};
      for (std::size_t begin = 0; begin < name.size();) {
        const std::size_t end = std::min(name.find('.', begin), name.size());
        target.path.push_back(name.substr(begin, end - begin));
        begin = end + 1;
      }
      targets.push_back(std::move(target));
    }
    return targets;
  }

  static bool is_child(const c10::IValue& container, const torch::jit::Module& module) {
    const auto& slots = container.toObjectRef().slots();
    return std::any_of(slots.begin(), slots.end(), [&](const c10::IValue& slot) { return slot.is(module._ivalue()); });
  }

  /// True when some method sets an attribute of this name, on whatever object.
  bool is_assigned(const std::string& name) const {
    return std::any_of(written_.begin(), written_.end(), [&](const auto& pair) { return pair.second == name; });
  }

  Value* choose(const std::vector<Target>& targets, std::size_t from) {
    if (from == targets.size()) {
      graph_.insert(prim::RaiseException, {"a module that is not part of this offload::Module was called through " +
                                           call_->input(0)->type()->annotation_str()});
      Node* nothing = graph_.insertNode(graph_.createUninitialized(call_->output()->type()));
      return nothing->output();
    }
    const Target& target = targets[from];
    Value* self = graph_.inputs()[0];
    torch::jit::Module module = root_;
    for (const std::string& part : target.path) {
      self = graph_.insertGetAttr(self, part);
      module = module.attr(part).toModule();
      self->setType(module.type()); // an attribute may be declared as an interface
    }
    Value* is_it = graph_.insert(aten::__is__, {call_->input(0), self});
    Node* branch = graph_.insertNode(graph_.create(prim::If, {is_it}, 0));
    Block* here = branch->addBlock();
    Block* elsewhere = branch->addBlock();
    {
      const torch::jit::WithInsertPoint in(here);
      auto body =
          torch::jit::toGraphFunction(target.module.get_method(call_->s(attr::name)).function()).graph()->copy();
      torch::jit::Inline(*body);
      std::vector<Value*> inputs = {self};
      inputs.insert(inputs.end(), call_->inputs().begin() + 1, call_->inputs().end());
      here->registerOutput(torch::jit::insertGraph(graph_, *body, inputs).at(0));
    }
    {
      const torch::jit::WithInsertPoint in(elsewhere);
      elsewhere->registerOutput(choose(targets, from + 1));
    }
    Value* output = branch->addOutput();
    output->setType(call_->output()->type());
    return output;
  }

  Graph& graph_;
  Node* call_;
  const torch::jit::Module& root_;
  const Attributes& attributes_; // of the graph before any call was replaced
  const AttributeNames& written_;
};

} // namespace

void inline_calls(const std::shared_ptr<Graph>& graph, const torch::jit::Module& module) {
  torch::jit::Inline(*graph);
  std::size_t inlined = 0;
  for (int round = 0; round < kRounds && inlined < kCalls; ++round) {
    const auto forks = nodes_where(*graph, [](const Node* node) { return node->kind() == prim::fork; });
    const auto calls = nodes_where(*graph, is_interface_call);
    if (forks.empty() && calls.empty()) {
      return;
    }
    for (Node* fork : forks) {
      inline_fork(*graph, fork);
    }
    inlined += forks.size() + calls.size();
    if (!calls.empty()) {
      const AttributeNames written = written_attributes(module);
      const Attributes attributes(*graph, {module._ivalue()}, written);
      for (Node* call : calls) {
        InterfaceCall(*graph, call, module, attributes, written).replace();
      }
    }
    torch::jit::Inline(*graph);
  }
}

} // namespace offload
