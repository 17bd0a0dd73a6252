#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <functional>
#include <string>

namespace offload {

/// True for tensors that are bytes of one storage in strides: neither sparse nor quantised, and not on meta.
bool is_weight_like(const at::Tensor& tensor);

/// Calls `visit` with a qualified name for every tensor below `value`: in lists, tuples, dicts and objects, each of
/// them once, by the name at which it is met first.
void visit_tensors(const std::string& name, const c10::IValue& value,
                   const std::function<void(const std::string& name, const at::Tensor& tensor)>& visit);

/// Calls `visit` for every object below `value`, each once; `value` may be one itself.
void visit_objects(const c10::IValue& value, const std::function<void(const c10::IValue& object)>& visit);

/// Calls `visit` for every list and dict below `value`, each once; `value` may be one itself.
void visit_containers(const c10::IValue& value, const std::function<void(const c10::IValue& container)>& visit);

/// `value` with `replace(tensor)` in the place of every defined tensor. Lists, dicts and objects for which `in_place`
/// is true are changed and stay what they are; others are copied. What is shared within `value` stays shared.
c10::IValue map_tensors(const c10::IValue& value, const std::function<at::Tensor(const at::Tensor&)>& replace,
                        const std::function<bool(const c10::IValue&)>& in_place);

} // namespace offload
