#pragma once

#include <offload/core/link.h>

namespace offload::test {

/// A fence of which nothing is asked but its channel and its order.
class Point final : public Fence {
 public:
  explicit Point(int channel) : Fence(channel) {}
};

} // namespace offload::test
