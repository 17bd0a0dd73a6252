#include <offload/load/storage_types.h>

#include <map>

namespace offload {

namespace {

const std::map<std::string_view, std::uint64_t> kElementBytes = {
    {"QInt8Storage", 1},
    {"QUInt8Storage", 1},
    {"QInt32Storage", 4},
    {"BoolStorage", 1},
    {"ByteStorage", 1},
    {"CharStorage", 1},
    {"ShortStorage", 2},
    {"IntStorage", 4},
    {"LongStorage", 8},
    {"UInt16Storage", 2},
    {"UInt32Storage", 4},
    {"UInt64Storage", 8},
    {"HalfStorage", 2},
    {"BFloat16Storage", 2},
    {"FloatStorage", 4},
    {"DoubleStorage", 8},
    {"ComplexHalfStorage", 4},
    {"ComplexFloatStorage", 8},
    {"ComplexDoubleStorage", 16},
    {"Float8_e5m2Storage", 1},
    {"Float8_e4m3fnStorage", 1},
    {"Float8_e5m2fnuzStorage", 1},
    {"Float8_e4m3fnuzStorage", 1},
    {"Float8_e8m0fnuStorage", 1},
};

} // namespace

std::uint64_t element_bytes(std::string_view type) {
  const auto known = kElementBytes.find(type);
  return known == kElementBytes.end() ? 0 : known->second;
}

std::uint64_t packed_elements(std::string_view type) {
  return type == "QUInt4x2Storage" ? 2 : type == "QUInt2x4Storage" ? 4 : 1;
}

} // namespace offload
