#pragma once

#include <cstdint>
#include <string_view>

namespace offload {

// Types of storages as pickles name them: FloatStorage.

/// Bytes of an element of a storage of this type; 0 when it is not known.
std::uint64_t element_bytes(std::string_view type);

/// Elements of a tensor that one element of its storage stands for: several are packed in a byte.
std::uint64_t packed_elements(std::string_view type);

} // namespace offload
