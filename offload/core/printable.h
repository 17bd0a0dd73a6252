#pragma once

#include <string>
#include <string_view>

#include <offload/export.h>

namespace offload {

/// `text` as a terminal or a log may have it, whoever wrote it: control characters other than `kept`, and bytes that
/// are no UTF-8, as \xNN.
OFFLOAD_API std::string printable(std::string_view text, std::string_view kept = "");

} // namespace offload
