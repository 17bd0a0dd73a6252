#pragma once

// The parts of the compiled module torch_offload._C; _C.pyi says what they are in Python.

#include <pybind11/pybind11.h>

#include <offload/module.h>

namespace offload::python {

void bind_records(pybind11::module_& module); ///< Placement, Stats, Report, PoolEntry
void bind_pool(pybind11::module_& module);    ///< Pool, PriorityGuard
void bind_module(pybind11::module_& module);  ///< Module, load, wrap

/// The placement of `of`, with its picture, as Python has it. The caller has Python's lock.
pybind11::object placement_of(const Module& of);

} // namespace offload::python
