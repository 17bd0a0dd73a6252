#pragma once

#include <string>
#include <vector>

#include <tools/calls.h>

namespace offload::tools {

/// Writes {"inputs": [...], "outputs": [...]}, of the calls that gave `outputs`, in turn, as torch.load takes it by
/// default. Throws InputError for a file that can not be written and for values that torch.load does not take, and
/// Error when the disk is full.
void save_calls(const std::string& path, const std::vector<Call>& calls, const std::vector<c10::IValue>& outputs);

} // namespace offload::tools
