#pragma once

#include <ATen/core/jit_type.h>

namespace offload {

/// False for a tensor, or none; true for what holds any number of them.
bool is_container(const c10::TypePtr& type);

/// A tensor, a list of tensors, and where either may be None.
bool can_lease(const c10::TypePtr& type);

/// Of a container: whether its elements can be written themselves.
bool holds_containers(const c10::TypePtr& type);

} // namespace offload
