#pragma once

#include <cstdint>
#include <random>
#include <string>

namespace offload::test {

using Dice = std::mt19937_64;

/// An archive that somebody damaged: bits flipped, cut, records swapped, sizes and counts made huge, directories that
/// lie, pickles and code changed under a right checksum. The same dice give the same archive.
std::string mutate(const std::string& archive, Dice& dice);

} // namespace offload::test
