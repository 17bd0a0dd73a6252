#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>

#include <offload/core/mutex.h>
#include <offload/core/words.h>

namespace offload {

using SequencePtr = std::shared_ptr<const Sequence>;

/// The steps that calls are expected to lease: those of the last call of the same shape, or else of the same method.
/// Any thread may call.
class Sequences {
 public:
  /// `otherwise` is asked where no call of the method has been seen.
  SequencePtr expected(const std::string& method, std::size_t shape, const std::function<Sequence()>& otherwise) {
    const Lock lock(mutex_);
    if (const auto known = by_shape_.find(shape); known != by_shape_.end()) {
      return known->second;
    }
    SequencePtr& sequence = by_method_[method];
    if (!sequence) {
      sequence = std::make_shared<const Sequence>(otherwise());
    }
    return sequence;
  }

  void record(const std::string& method, std::size_t shape, SequencePtr sequence) {
    constexpr std::size_t kShapes = 256; // more come where every call has another
    const Lock lock(mutex_);
    if (by_shape_.size() >= kShapes && by_shape_.count(shape) == 0) {
      by_shape_.clear();
    }
    by_shape_[shape] = sequence;
    by_method_[method] = std::move(sequence);
  }

  /// Drops all but these.
  void reset(std::map<std::string, SequencePtr> by_method) {
    const Lock lock(mutex_);
    by_method_ = std::move(by_method);
    by_shape_.clear();
  }

 private:
  Mutex mutex_;
  std::map<std::string, SequencePtr> by_method_ OFFLOAD_GUARDED_BY(mutex_);
  std::unordered_map<std::size_t, SequencePtr> by_shape_ OFFLOAD_GUARDED_BY(mutex_);
};

} // namespace offload
