#pragma once

#include <offload/core/link.h>

namespace offload::test {

/// A fence of which nothing is asked but its lane and its order.
class Point final : public Fence {
 public:
  explicit Point(int lane) : Fence(lane) {}
};

} // namespace offload::test
