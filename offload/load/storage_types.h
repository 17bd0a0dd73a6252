#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string_view>

namespace offload {

// Types of storages as pickles name them: FloatStorage.

/// Bytes of an element of a storage of this type; 0 when it is not known.
inline std::uint64_t element_bytes(std::string_view type) {
  static const std::map<std::uint64_t, std::set<std::string_view>> kTypes = {
      {1,
       {"QInt8Storage", "QUInt8Storage", "BoolStorage", "ByteStorage", "CharStorage", "Float8_e5m2Storage",
        "Float8_e4m3fnStorage", "Float8_e5m2fnuzStorage", "Float8_e4m3fnuzStorage", "Float8_e8m0fnuStorage"}},
      {2, {"ShortStorage", "UInt16Storage", "HalfStorage", "BFloat16Storage"}},
      {4, {"QInt32Storage", "IntStorage", "UInt32Storage", "FloatStorage", "ComplexHalfStorage"}},
      {8, {"LongStorage", "UInt64Storage", "DoubleStorage", "ComplexFloatStorage"}},
      {16, {"ComplexDoubleStorage"}},
  };
  for (const auto& [bytes, types] : kTypes) {
    if (types.count(type) > 0) {
      return bytes;
    }
  }
  return 0;
}

/// Elements of a tensor that one element of its storage stands for: several are packed in a byte.
inline std::uint64_t packed_elements(std::string_view type) {
  return type == "QUInt4x2Storage" ? 2 : type == "QUInt2x4Storage" ? 4 : 1;
}

} // namespace offload
