#include <offload/runtime/sequences.h>

#include <utility>

namespace offload {

SequencePtr Sequences::expected(const std::string& method, std::size_t shape,
                                const std::function<Sequence()>& otherwise) {
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

void Sequences::record(const std::string& method, std::size_t shape, SequencePtr sequence) {
  constexpr std::size_t kShapes = 256; // more come where every call has another
  const Lock lock(mutex_);
  if (by_shape_.size() >= kShapes && by_shape_.count(shape) == 0) {
    by_shape_.clear();
  }
  by_shape_[shape] = sequence;
  by_method_[method] = std::move(sequence);
}

void Sequences::reset(std::map<std::string, SequencePtr> by_method) {
  const Lock lock(mutex_);
  by_method_ = std::move(by_method);
  by_shape_.clear();
}

} // namespace offload
