#pragma once

#include <cstdint>
#include <string>

namespace offload {

/// Bytes of host memory that this process may take now: of the machine, and of every cgroup around it, whichever has
/// least. What the system gives up when somebody wants it, the page cache above all, is free.
std::uint64_t available_host_bytes();

/// For tests: before "/proc" and "/sys".
void set_system_root(std::string root);

} // namespace offload
