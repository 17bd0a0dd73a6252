#include <offload/graph/inline_calls.h>

#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/passes/inliner.h>

#include <algorithm>
#include <sstream>
#include <string>
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

/// Calls that an inlined body brings are inlined in the next round. What recurses ends here.
constexpr int kRounds = 16;
constexpr std::size_t kCalls = 512;

void inline_fork(Graph& graph, Node* fork) {
  const torch::jit::WithInsertPoint at(fork);
  const std::vector<Value*> outputs = torch::jit::insertGraph(graph, *fork->g(attr::Subgraph), fork->inputs());
  Node* completed =
      graph.insertNode(graph.create(c10::Symbol::fromQualString("offload::completed"), {outputs.at(0)}, 1));
  completed->output()->setType(fork->output()->type());
  fork->output()->replaceAllUsesWith(completed->output());
  fork->destroy();
}

/// The modules that a call may mean, by their names below `root`. `attributes` are those of the graph before any call
/// was replaced.
std::vector<torch::jit::NameModule> targets_of(const Node* call, const torch::jit::Module& root,
                                               const Attributes& attributes, const AttributeNames& written) {
  // An attribute that no method sets, on whatever object, or the children of a container that is indexed; else whatever
  // fits.
  const Node* source = call->input(0)->node();
  while (source->kind() == prim::unchecked_cast) {
    source = source->input(0)->node();
  }
  const auto is_assigned = [&](const std::string& name) {
    return std::any_of(written.begin(), written.end(), [&](const AttributeName& set) { return set.second == name; });
  };
  const c10::IValue* container =
      source->kind() == prim::ModuleContainerIndex ? attributes.value_of(source->input(0)) : nullptr;
  const c10::IValue* attribute = source->kind() == prim::GetAttr && !is_assigned(source->s(attr::name))
                                     ? attributes.value_of(source->output())
                                     : nullptr;
  const auto may_be = [&](const torch::jit::Module& module) {
    const auto is_it = [&](const c10::IValue& value) { return value.is(module._ivalue()); };
    if (attribute) {
      return is_it(*attribute);
    }
    return !container ||
           std::any_of(container->toObjectRef().slots().begin(), container->toObjectRef().slots().end(), is_it);
  };
  const auto interface = call->input(0)->type()->expect<c10::InterfaceType>();
  std::vector<torch::jit::NameModule> targets;
  for (const torch::jit::NameModule& named : root.named_modules()) {
    if (may_be(named.value) && named.value.type()->isSubtypeOf(*interface)) {
      targets.push_back(named);
    }
  }
  return targets;
}

/// Inserts a choice among `targets` from `from` on, and gives what the one that is called returns.
Value* choose(Graph& graph, Node* call, const torch::jit::Module& root,
              const std::vector<torch::jit::NameModule>& targets, std::size_t from = 0) {
  if (from == targets.size()) {
    graph.insert(prim::RaiseException, {"a module that is not part of this offload::Module was called through " +
                                        call->input(0)->type()->annotation_str()});
    return graph.insertNode(graph.createUninitialized(call->output()->type()))->output();
  }
  Value* self = graph.inputs()[0];
  torch::jit::Module module = root;
  std::istringstream path(targets[from].name);
  for (std::string part; std::getline(path, part, '.');) {
    self = graph.insertGetAttr(self, part);
    module = module.attr(part).toModule();
    self->setType(module.type()); // an attribute may be declared as an interface
  }
  Value* is_it = graph.insert(aten::__is__, {call->input(0), self});
  Node* branch = graph.insertNode(graph.create(prim::If, {is_it}, 0));
  Block* here = branch->addBlock();
  Block* elsewhere = branch->addBlock();
  {
    const torch::jit::WithInsertPoint in(here);
    auto body = torch::jit::toGraphFunction(module.get_method(call->s(attr::name)).function()).graph()->copy();
    torch::jit::Inline(*body);
    std::vector<Value*> inputs = {self};
    inputs.insert(inputs.end(), call->inputs().begin() + 1, call->inputs().end());
    here->registerOutput(torch::jit::insertGraph(graph, *body, inputs).at(0));
  }
  {
    const torch::jit::WithInsertPoint in(elsewhere);
    elsewhere->registerOutput(choose(graph, call, root, targets, from + 1));
  }
  return branch->addOutput()->setType(call->output()->type());
}

} // namespace

void inline_calls(const std::shared_ptr<Graph>& graph, const torch::jit::Module& module) {
  torch::jit::Inline(*graph);
  std::size_t inlined = 0;
  for (int round = 0; round < kRounds && inlined < kCalls; ++round) {
    std::vector<Node*> forks;
    std::vector<Node*> calls;
    for_each_node(graph->block(), [&](Node* node) {
      if (node->kind() == prim::fork) {
        forks.push_back(node);
      } else if (node->kind() == prim::CallMethod && node->input(0)->type()->kind() == c10::TypeKind::InterfaceType) {
        calls.push_back(node);
      }
    });
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
        const torch::jit::WithInsertPoint at(call);
        call->output()->replaceAllUsesWith(choose(*graph, call, module, targets_of(call, module, attributes, written)));
        call->destroy();
      }
    }
    torch::jit::Inline(*graph);
  }
}

} // namespace offload
