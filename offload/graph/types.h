#pragma once

#include <ATen/core/jit_type.h>

namespace offload {

/// False for a tensor and an optional tensor; true for all others, which may hold any number of them.
bool is_container(const c10::TypePtr& type);

/// True for a tensor, an optional tensor, and a list of either.
bool can_lease(const c10::TypePtr& type);

/// Of a container: whether its elements can be written themselves.
bool holds_containers(const c10::TypePtr& type);

} // namespace offload
