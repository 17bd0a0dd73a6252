#pragma once

#include <offload/export.h>

/// Semantic versioning; until 1.0 a minor version may change the interface. CMake reads the numbers from here.
// NOLINTBEGIN(modernize-macro-to-enum): programs ask for them with #if, which knows no enumerators
#define OFFLOAD_VERSION_MAJOR 0
#define OFFLOAD_VERSION_MINOR 1
#define OFFLOAD_VERSION_PATCH 0
// NOLINTEND(modernize-macro-to-enum)

namespace offload {

/// The version of the library that runs, as in "0.1.0": that of the header where both are of one installation.
OFFLOAD_API const char* version();

} // namespace offload
