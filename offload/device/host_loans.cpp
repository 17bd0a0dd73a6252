#include <offload/device/host_loans.h>

#include <iterator>

namespace offload {

HostLoans::~HostLoans() {
  free_returned();
  for (const auto& [data, loan] : lent_) {
    source_.free(const_cast<std::byte*>(data));
  }
}

void* HostLoans::lend(std::uint64_t bytes, std::uint64_t offset) {
  const Lock lock(mutex_);
  void* data = nullptr;
  if (const auto had = returned_.lower_bound(bytes); had != returned_.end() && had->first <= 2 * bytes) {
    data = had->second;
    returned_.erase(had);
  } else {
    data = source_.allocate(bytes);
  }
  if (data) {
    lent_[static_cast<const std::byte*>(data)] = {offset, bytes};
    any_lent_ = true;
  }
  return data;
}

std::uint64_t HostLoans::take_back(void* data) {
  const Lock lock(mutex_);
  const auto loan = lent_.find(static_cast<const std::byte*>(data));
  const std::uint64_t offset = loan->second.offset;
  returned_.emplace(loan->second.bytes, data);
  lent_.erase(loan);
  any_lent_ = !lent_.empty();
  return offset;
}

bool HostLoans::contains(const void* data) const {
  if (!any_lent_) {
    return false;
  }
  const Lock lock(mutex_);
  const auto* byte = static_cast<const std::byte*>(data);
  const auto after = lent_.upper_bound(byte);
  return after != lent_.begin() && byte < std::prev(after)->first + std::prev(after)->second.bytes;
}

void HostLoans::free_returned() {
  const Lock lock(mutex_);
  for (const auto& [bytes, data] : returned_) {
    source_.free(data);
  }
  returned_.clear();
}

} // namespace offload
