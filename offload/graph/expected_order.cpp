#include <offload/graph/expected_order.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace offload {

namespace {

class Unroller {
 public:
  explicit Unroller(const std::vector<LoweredStep>& steps) : steps_(steps), left_(steps.size()) {
    std::transform(steps.begin(), steps.end(), left_.begin(),
                   [](const LoweredStep& step) { return static_cast<int>(std::min(step.times, 1000.0)); });
  }

  /// One round through the steps from `begin` to `end`, all of which are `depth` loops deep or deeper.
  void run(std::size_t begin, std::size_t end, std::size_t depth) {
    for (std::size_t i = begin; i < end;) {
      if (steps_[i].loops.size() == depth) {
        if (left_[i] > 0) {
          --left_[i];
          order_.push_back(&steps_[i]);
        }
        ++i;
        continue;
      }
      const Loop& loop = steps_[i].loops[depth];
      const std::size_t first = i;
      while (i < end && steps_[i].loops.size() > depth && steps_[i].loops[depth].identity == loop.identity) {
        ++i;
      }
      std::size_t before = order_.size();
      run(first, i, depth + 1);
      for (std::int64_t round = 1; round < loop.trips && order_.size() > before; ++round) {
        before = order_.size();
        run(first, i, depth + 1);
      }
    }
  }

  std::vector<const LoweredStep*> take_order() { return std::move(order_); }

 private:
  const std::vector<LoweredStep>& steps_;
  std::vector<int> left_; // by step, how often it still comes
  std::vector<const LoweredStep*> order_;
};

} // namespace

std::vector<const LoweredStep*> expected_order(const std::vector<LoweredStep>& steps) {
  Unroller unroller(steps);
  unroller.run(0, steps.size(), 0);
  return unroller.take_order();
}

} // namespace offload
