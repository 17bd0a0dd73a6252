#pragma once

#include <ATen/core/jit_type.h>
#include <c10/core/DispatchKey.h>
#include <torch/csrc/jit/ir/ir.h>

#include <initializer_list>
#include <string_view>

namespace offload {

// Types of values.

/// True for a device, and an optional one.
bool is_device(const c10::TypePtr& type);

/// False for a tensor and an optional tensor; true for all others, which may hold any number of them.
bool is_container(const c10::TypePtr& type);

/// True for a tensor, an optional tensor, and a list of either.
bool can_lease(const c10::TypePtr& type);

/// Of a container: whether its elements can be written themselves.
bool holds_containers(const c10::TypePtr& type);

// Nodes by what they are.

/// By its qualified name.
bool is_one_of(const torch::jit::Node* node, std::initializer_list<std::string_view> names);

/// True where the dispatcher has a kernel of the node's operator for one of `keys`.
bool has_kernel(const torch::jit::Node* node, std::initializer_list<c10::DispatchKey> keys);

// What the nodes of a graph do to a weight that they are given. Names that are not listed read it.

/// Asks for nothing that a placeholder does not know: sizes, dtype, device, identity.
bool is_metadata(const torch::jit::Node* node);

/// Its outputs are the weight again: views, and containers of it.
bool passes_on(const torch::jit::Node* node);

/// Puts what it is given into a new container.
bool is_construct(const torch::jit::Node* node);

/// Returns a container of its own with elements of the one that it is given.
bool copies_container(const torch::jit::Node* node);

/// Takes this input whatever its type is: it moves the value, as containers do, and does not look into tensors.
bool moves_input(const torch::jit::Node* node, std::size_t input);

/// May return its input, or a view of it, where its schema does not say so.
bool may_return_input(const torch::jit::Node* node);

/// What it returns may share the memory of this input.
bool may_alias_output(const torch::jit::Node* node, std::size_t input);

/// Writes this input: the memory of a tensor, or the elements of a container.
bool writes_input(const torch::jit::Node* node, std::size_t input);

/// Writes into the memory of the tensors in this input, a list.
bool writes_elements(const torch::jit::Node* node, std::size_t input);

/// Of a node that looks up rows of its first input, wherever that lies: the indices. Null for all other nodes.
torch::jit::Value* indices_of_lookup(torch::jit::Node* node);

/// Hands objects on without a look inside. Anything else that is given a module may read its weights unseen.
bool passes_objects_on(const torch::jit::Node* node);

} // namespace offload
