#pragma once

#include <string>

#include <offload/timeline.h>

namespace offload::tools {

/// A picture of link, compute and stall, and of the host where it was recorded. Entries that are too narrow to be seen
/// are drawn together. `origin`: what its time counts from.
std::string to_svg(const Timeline& timeline, const std::string& heading, const std::string& origin);

/// The same, every entry, as a trace for chrome://tracing and Perfetto: a thread for each lane.
std::string to_trace(const Timeline& timeline, const std::string& heading);

} // namespace offload::tools
