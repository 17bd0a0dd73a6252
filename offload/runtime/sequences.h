#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>

#include <offload/core/mutex.h>
#include <offload/core/words.h>

namespace offload {

using SequencePtr = std::shared_ptr<const Sequence>;

/// The steps that calls are expected to lease: those of the last call of the same shape, or else of the same method.
/// Any thread may call.
class Sequences {
 public:
  /// `otherwise` is asked where no call of the method has been seen.
  SequencePtr expected(const std::string& method, std::size_t shape, const std::function<Sequence()>& otherwise);

  void record(const std::string& method, std::size_t shape, SequencePtr sequence);

  /// Drops all but these.
  void reset(std::map<std::string, SequencePtr> by_method);

 private:
  Mutex mutex_;
  std::map<std::string, SequencePtr> by_method_ OFFLOAD_GUARDED_BY(mutex_);
  std::unordered_map<std::size_t, SequencePtr> by_shape_ OFFLOAD_GUARDED_BY(mutex_);
};

} // namespace offload
