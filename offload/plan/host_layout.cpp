#include <offload/plan/host_layout.h>

#include <algorithm>
#include <string>

#include <offload/bytes.h>
#include <offload/error.h>
#include <offload/feed/stores.h>

namespace offload {

namespace {

/// By default what is free, less some for others.
std::uint64_t room_of(const HostBudgets& budgets) {
  const std::uint64_t for_others = std::max(512_MiB, budgets.free / 16);
  return budgets.host.value_or(budgets.free - std::min(budgets.free, for_others));
}

std::vector<bool> choose_what_stays_in_file(const std::vector<HostWeight>& weights, const std::vector<WeightId>& by_use,
                                            const HostBudgets& budgets) {
  std::vector<bool> stays(weights.size(), false);
  std::uint64_t room = room_of(budgets);
  const auto take = [&room](std::uint64_t bytes) { room -= std::min(room, bytes); };
  const std::uint64_t buffers = FileReader::kBytesHeld + (budgets.device_is_host ? 0 : kStagingBytes);
  std::uint64_t all = 0;
  bool any = false;
  for (const HostWeight& weight : weights) {
    all += weight.bytes;
    any = any || weight.is_in_file;
  }
  if (!any || (!budgets.device_is_host && all + buffers <= room)) {
    return stays;
  }
  take(buffers);
  for (const HostWeight& weight : weights) {
    take(weight.is_in_file ? 0 : weight.bytes);
  }
  for (const WeightId id : by_use) {
    const HostWeight& weight = weights[id];
    if (weight.bytes > 0 && weight.is_in_file) {
      const bool may_be_in_memory = !budgets.device_is_host || weight.has_rows_looked_up;
      stays[id] = !may_be_in_memory || weight.bytes > room;
      take(may_be_in_memory ? weight.bytes : 0); // what comes after the first that has no room stays too
    }
  }
  return stays;
}

} // namespace

HostLayout lay_out_host(const std::vector<HostWeight>& weights, const std::vector<WeightId>& by_use,
                        const HostBudgets& budgets) {
  if (budgets.host && budgets.pinned && *budgets.pinned > *budgets.host) {
    throw InputError("pinned_budget " + format_bytes(*budgets.pinned) + " is more than host_budget " +
                     format_bytes(*budgets.host) + ": pinned memory is host memory");
  }
  const std::vector<bool> in_file = choose_what_stays_in_file(weights, by_use, budgets);
  HostLayout layout;
  layout.sources.resize(weights.size());
  std::uint64_t end = 0;
  bool streams_from_file = false;
  for (const WeightId id : by_use) {
    const HostWeight& weight = weights[id];
    Source& source = layout.sources[id];
    source.bytes = weight.bytes;
    if (in_file[id]) {
      source = {Source::Kind::file, false, weight.begin, weight.true_bytes};
      streams_from_file = true;
    } else if (weight.can_stay_in_module) {
      source = {Source::Kind::module, true, weight.begin, weight.bytes};
      layout.in_module += weight.bytes;
    } else {
      source = {Source::Kind::memory, false, end, weight.bytes};
      end += weight.bytes;
    }
    layout.reading = weight.is_in_file ? FileReader::kBytesHeld : layout.reading;
  }
  layout.in_memory = end + layout.in_module;
  const std::uint64_t pinned = budgets.pinned.value_or(end + (streams_from_file ? kStagingBytes : 0));
  if (!budgets.device_is_host) {
    layout.pinned_weights = end;
    if (streams_from_file || pinned < end) {
      constexpr std::uint64_t kUnit = kStagingBuffers * kPageBytes;
      layout.staging = std::min(pinned, kStagingBytes) / kUnit * kUnit;
      if (layout.staging < kLeastStagingBytes) {
        throw InputError("pinned_budget " + format_bytes(pinned) + " is too small: staging buffers take " +
                         format_bytes(kLeastStagingBytes));
      }
      layout.pinned_weights = std::min(end, (pinned - layout.staging) / kPageBytes * kPageBytes);
    }
  }
  for (Source& source : layout.sources) {
    if (source.kind == Source::Kind::memory) {
      source.direct = budgets.device_is_host || source.offset + source.bytes <= layout.pinned_weights;
    }
  }
  if (budgets.host.value_or(~std::uint64_t{0}) < layout.total()) {
    throw InputError("host_budget " + format_bytes(*budgets.host) +
                     " is too small: weights that have to be in memory, and buffers, take " +
                     std::to_string(layout.total()) + " bytes of host memory");
  }
  return layout;
}

} // namespace offload
