#pragma once

#include <cstdint>

namespace offload {

/// The process in which this was made. A child of fork() has the memory of its parent and none of its threads: what
/// they have locked stays locked, and what they have begun is never done.
class Process {
 public:
  Process();

  /// False in the children of that process.
  bool is_this() const;

 private:
  std::uint64_t generation_;
};

} // namespace offload
