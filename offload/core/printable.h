#pragma once

#include <string>
#include <string_view>

#include <offload/export.h>

namespace offload {

/// `text`, whoever wrote it, as it may go to a terminal or a log: with control characters other than `kept`, and bytes
/// that are no UTF-8, written as \xNN.
OFFLOAD_API std::string printable(std::string_view text, std::string_view kept = "");

} // namespace offload
