#pragma once

#include <string>
#include <string_view>

namespace offload {

/// Throws ArchiveError where the code of an archive would crash PyTorch's parser or compiler: where it nests deeper
/// than they have stack for, since they are recursive (what PyTorch writes nests a few dozen deep), and where a
/// subscript has no index.
void check_code(std::string_view text, const std::string& name);

} // namespace offload
