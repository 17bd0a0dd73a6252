#pragma once

#include <string>
#include <string_view>

namespace offload {

/// Throws ArchiveError where the code of an archive nests deeper than PyTorch's parser and compiler bear: they are
/// recursive, and the stack would end in a crash. What PyTorch writes nests a few dozen deep. Likewise for a subscript
/// without an index, which they do not bear either.
void check_code(std::string_view text, const std::string& name);

} // namespace offload
