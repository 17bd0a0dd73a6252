#include "mutations.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstring>
#include <string_view>
#include <vector>

#include <offload/error.h>

#include "temporary_file.h"
#include "zip_maker.h"

namespace offload::test {

namespace {

/// One of 0 to below `end`.
std::size_t below(Dice& dice, std::size_t end) { return end == 0 ? 0 : dice() % end; }
bool one_in(Dice& dice, std::size_t n) { return below(dice, n) == 0; }

template <class Container>
auto& any_of(Dice& dice, Container& choices) {
  return choices[below(dice, choices.size())];
}

/// Numbers at which something changes.
std::uint64_t interesting(Dice& dice) {
  static constexpr std::array<std::uint64_t, 14> kNumbers = {
      0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, ~0ULL};
  return any_of(dice, kNumbers) - below(dice, 2);
}

/// Bytes of any kind.
void change_bytes(std::string& bytes, Dice& dice) {
  if (bytes.empty()) {
    bytes = "x";
    return;
  }
  const std::size_t at = one_in(dice, 3) ? bytes.size() - 1 - below(dice, std::min<std::size_t>(bytes.size(), 400))
                                         : below(dice, bytes.size());
  const std::size_t rest = bytes.size() - at;
  const std::size_t some = 1 + below(dice, std::min<std::size_t>(rest, 64));
  switch (below(dice, 8)) {
    case 0:
      bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(dice, 8)));
      break;
    case 1:
      bytes[at] = static_cast<char>(dice());
      break;
    case 2:
      bytes.resize(at);
      break;
    case 3:
      bytes.erase(at, some);
      break;
    case 4:
      bytes.insert(at, bytes.substr(below(dice, bytes.size()), some));
      break;
    case 5:
      bytes.replace(at, some, bytes.substr(below(dice, bytes.size()), some));
      break;
    default: {
      const std::uint64_t number = interesting(dice);
      static constexpr std::array<std::size_t, 4> kWidths = {1, 2, 4, 8};
      std::memcpy(bytes.data() + at, &number, std::min(any_of(dice, kWidths), rest));
    }
  }
}

/// Opcodes instead of opcodes, most of the time.
void change_pickle(std::string& bytes, Dice& dice) {
  static constexpr std::string_view kOpcodes =
      "\x80(.0123BCGIJKLMNQRSTUVX]abcdeghijlopqrstu}\x81\x82\x85\x86\x87\x88\x89\x8a\x8c\x90\x93\x94";
  if (bytes.empty() || one_in(dice, 2)) {
    change_bytes(bytes, dice);
    return;
  }
  const std::size_t at = below(dice, bytes.size());
  const char opcode = any_of(dice, kOpcodes);
  if (one_in(dice, 2)) {
    bytes[at] = opcode;
  } else {
    bytes.insert(at, below(dice, 8) == 0 ? below(dice, 5000) : 1, opcode);
  }
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size() - 1) + 1;
    lines.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  return lines;
}

/// Lines moved, numbers and names replaced, nesting.
void change_code(std::string& text, Dice& dice) {
  std::vector<std::string> lines = lines_of(text);
  if (lines.empty() || one_in(dice, 4)) {
    change_bytes(text, dice);
    return;
  }
  std::string& line = any_of(dice, lines);
  switch (below(dice, 6)) {
    case 0:
      line += any_of(dice, lines);
      break;
    case 1:
      line.clear();
      break;
    case 2:
      std::swap(line, any_of(dice, lines));
      break;
    case 3: {
      static constexpr std::string_view kBrackets = "([{-~ )]},:";
      const std::size_t depth = 1 + below(dice, one_in(dice, 8) ? 200'000 : 20);
      line.insert(below(dice, line.size()), std::string(depth, any_of(dice, kBrackets)));
      break;
    }
    case 4:
      if (const std::size_t digit = line.find_first_of("0123456789"); digit != std::string::npos) {
        line.replace(digit, 1, std::to_string(interesting(dice)));
      }
      break;
    default: {
      const std::string& other = any_of(dice, lines);
      const std::size_t from = below(dice, other.size());
      line.insert(below(dice, line.size()), other.substr(from, 1 + below(dice, 20)));
    }
  }
  text.clear();
  for (const std::string& each : lines) {
    text += each;
  }
}

void change_content(ZipEntry& entry, Dice& dice) {
  if (entry.name.ends_with(".pkl")) {
    change_pickle(entry.bytes, dice);
  } else if (entry.name.ends_with(".py")) {
    change_code(entry.bytes, dice);
  } else {
    change_bytes(entry.bytes, dice);
  }
}

/// But not its folder.
std::string in_capitals(std::string name) {
  std::transform(name.begin() + static_cast<std::ptrdiff_t>(name.find('/') + 1), name.end(),
                 name.begin() + static_cast<std::ptrdiff_t>(name.find('/') + 1),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  return name;
}

/// What the directory says of a record, or which records there are.
void change_directory(std::vector<ZipEntry>& entries, Dice& dice) {
  ZipEntry& entry = any_of(dice, entries);
  ZipEntry& other = any_of(dice, entries);
  const auto number =
      static_cast<std::uint32_t>(one_in(dice, 2) ? interesting(dice) : entry.bytes.size() + below(dice, 9));
  switch (below(dice, 15)) {
    case 0:
      std::swap(entry.bytes, other.bytes);
      break;
    case 1:
      entry.name = other.name;
      break;
    case 2:
      std::swap(entry.name, other.name);
      break;
    case 3:
      entry.size = number;
      break;
    case 4:
      entry.stored = number;
      break;
    case 5:
      entry.size = entry.stored = number;
      break;
    case 6:
      entry.header = one_in(dice, 2) ? number : static_cast<std::uint32_t>(below(dice, 1 << 16));
      break;
    case 7:
      entry.crc = number;
      break;
    case 8:
      entry.method = static_cast<std::uint16_t>(below(dice, 2) * 8 + below(dice, 16) / 15);
      break;
    case 9:
      entry.flags = static_cast<std::uint16_t>(1 << below(dice, 16));
      break;
    case 10:
      entry.name_in_header = other.name;
      break;
    case 11:
      entry = deflated(entry);
      break;
    case 12:
      entry.name = in_capitals(entry.name);
      break;
    case 13:
      entries.insert(entries.begin(), ZipEntry(entry));
      entries.front().name = in_capitals(entries.front().name);
      break;
    default:
      entries.emplace_back(entry);
      entries.back().name += one_in(dice, 2) ? "x" : "";
  }
  if (one_in(dice, 6)) {
    entries.erase(entries.begin() + static_cast<std::ptrdiff_t>(below(dice, entries.size())));
  }
}

std::vector<ZipEntry> entries_of(const std::string& archive) {
  std::vector<ZipEntry> entries;
  try {
    const TemporaryFile written(archive);
    const File file(written.path());
    for (const ZipRecord& record : read_zip_directory(file)) {
      entries.push_back({record.name, read_zip_record(file, record)});
    }
  } catch (const ArchiveError&) {
    entries.clear(); // it is damaged already
  }
  return entries;
}

/// Tensors are many, and what is in them is never looked at: mostly something else.
ZipEntry& any_to_change(std::vector<ZipEntry>& entries, Dice& dice) {
  for (int attempt = 0; attempt < 4; ++attempt) {
    ZipEntry& entry = any_of(dice, entries);
    if (entry.name.find("/data/") == std::string::npos) {
      return entry;
    }
  }
  return any_of(dice, entries);
}

} // namespace

std::string mutate(const std::string& archive, Dice& dice) {
  std::string changed = archive;
  std::vector<ZipEntry> entries = entries_of(archive);
  const std::size_t times = 1 + below(dice, 3);
  if (entries.empty() || one_in(dice, 6)) {
    for (std::size_t i = 0; i < times; ++i) {
      change_bytes(changed, dice);
    }
    return changed;
  }
  for (std::size_t i = 0; i < times && !entries.empty(); ++i) {
    if (one_in(dice, 3)) {
      change_directory(entries, dice);
    } else {
      change_content(any_to_change(entries, dice), dice);
    }
  }
  return make_zip(entries);
}

} // namespace offload::test
