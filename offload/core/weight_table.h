#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <offload/core/words.h>

namespace offload {

/// Where the bytes of a weight are until they are on the device.
struct Source {
  enum class Kind : std::uint8_t {
    memory, ///< on the host, taken for the weights of the module
    module, ///< the storage that the module came with, which is on the host too
    file,
  };

  Kind kind = Kind::memory;
  bool direct = false; ///< on a GPU, page-locked as a whole: link and device read it where it is. On the host, always
  std::uint64_t offset = 0; ///< in that memory, storage or file
  std::uint64_t bytes = 0;  ///< that come from there; what else its place on the device has is without meaning
};

/// Types of elements, by how fast a device multiplies them.
enum class Arithmetic : std::uint8_t { fp64, fp32, half };

/// A weight that may be resident or streamed. One that always stays on the device has a place of 0 bytes.
struct WeightEntry {
  std::string name;
  std::uint64_t bytes = 0; ///< of its place on the device, aligned to 512
  Arithmetic arithmetic = Arithmetic::fp32;
  Source source;
};

/// By WeightId.
using WeightTable = std::vector<WeightEntry>;
/// Often of several owners.
using WeightTablePtr = std::shared_ptr<const WeightTable>;

/// What stays on the device, and what the rest passes through.
struct Residency {
  std::vector<std::uint64_t> bytes; ///< by weight, those that stay: so far none or all
  std::uint64_t ring_bytes = 0;

  bool stays(WeightId weight) const { return bytes[weight] > 0; }

  bool operator==(const Residency&) const = default;
};

/// Every weight stays: there is no ring.
inline Residency all_resident(const WeightTable& weights) {
  Residency residency;
  for (const WeightEntry& weight : weights) {
    residency.bytes.push_back(weight.bytes);
  }
  return residency;
}

} // namespace offload
