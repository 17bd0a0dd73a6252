#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

/// What the library asks of the system and of the driver, intercepted: the test program defines these functions itself,
/// and those of the library's calls that are meant to fail fail. Calls of anybody else go through.
namespace offload::test::faults {

/// Counts calls anew and lets all succeed.
void reset();

/// Lets the call of `function` with this number fail, and those after it up to `times`; numbers begin with 0 at
/// reset().
void arm(const std::string& function, std::uint64_t number, std::uint64_t times = 1);

/// Lets all calls succeed from now on.
void disarm();

/// True when the armed calls have come, and failed.
bool fired();

/// Calls of each function since reset().
std::map<std::string, std::uint64_t> counts();

/// What the library has taken and not given back, by the function that takes it: allocations, page-locks, events,
/// streams.
std::map<std::string, std::size_t> held();

/// Of that, bytes of whole pages that are page-locked for the device.
std::uint64_t page_locked_bytes();

} // namespace offload::test::faults
