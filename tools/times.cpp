#include <tools/times.h>

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace offload::tools {

double median(Times times) {
  if (times.empty()) {
    return 0;
  }
  const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

double percentile(Times times, double part) {
  if (times.empty()) {
    return 0;
  }
  const double rank = std::ceil(part * static_cast<double>(times.size()));
  const auto index = std::clamp<std::ptrdiff_t>(static_cast<std::ptrdiff_t>(rank) - 1, 0,
                                                static_cast<std::ptrdiff_t>(times.size()) - 1);
  std::nth_element(times.begin(), times.begin() + index, times.end());
  return times[static_cast<std::size_t>(index)];
}

} // namespace offload::tools
