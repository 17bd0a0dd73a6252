#pragma once

#include <algorithm>

namespace offload {

/// How many callers a module has at the same time, as far as that changes what is planned. Not synchronised.
class Demand {
 public:
  explicit Demand(int callers) : callers_(callers) {}

  /// That are planned for.
  int callers() const { return callers_; }

  /// A call begins, of `callers` that are in a call or wait for their turn. True when a plan is to be made for others
  /// than before: for more, once some calls have found more; for fewer, once many have found no more than half.
  bool record(int callers) {
    constexpr int kSome = 8;
    constexpr int kMany = 256;
    most_ = std::max(most_, callers);
    ++calls_;
    more_ += callers > callers_ ? 1 : 0;
    const bool changes = more_ == kSome || (calls_ == kMany && most_ <= callers_ / 2);
    if (changes) {
      callers_ = most_;
    }
    if (changes || calls_ == kMany) {
      most_ = more_ = calls_ = 0;
    }
    return changes;
  }

 private:
  int callers_;
  int calls_ = 0; // lately
  int most_ = 0;  // callers, of these
  int more_ = 0;  // of these calls, that found more than are planned for
};

} // namespace offload
