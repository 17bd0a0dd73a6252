#include <offload/load/outline.h>

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <random>

#include <offload/error.h>
#include <offload/load/zip.h>

namespace offload {

namespace {

/// Little-endian, as zip archives are.
template <typename Number>
void put(std::string& to, std::initializer_list<Number> numbers) {
  to.append(reinterpret_cast<const char*>(numbers.begin()), numbers.size() * sizeof(Number));
}

constexpr std::uint32_t kElsewhere = 0xFFFFFFFF; // the number stands in the part for large ones
constexpr std::uint16_t kVersion = 45;           // that has large numbers

} // namespace

Outline::Outline(std::shared_ptr<const File> file) : file_(std::move(file)) {
  std::random_device random;
  for (std::uint64_t& word : secret_) {
    word = static_cast<std::uint64_t>(random()) << 32 | random();
  }
}

std::optional<std::uint64_t> Outline::number_at(const void* data) const {
  std::array<std::uint64_t, 3> words{};
  std::memcpy(words.data(), data, sizeof words);
  return words[0] == secret_[0] && words[1] == secret_[1] ? std::optional(words[2]) : std::nullopt;
}

void Outline::append(std::string held) {
  const std::uint64_t bytes = held.size();
  parts_.push_back({end_, bytes, std::move(held), 0});
  end_ += bytes;
}

void Outline::begin_record(const std::string& name, std::uint64_t bytes, std::uint32_t crc) {
  const std::uint64_t begin = end_;
  const auto put_sizes = [&](std::string& to) {
    put<std::uint16_t>(to, {0, 0, 0, 0}); // flags, stored, time, date
    put(to, {crc, kElsewhere, kElsewhere});
    put(to, {static_cast<std::uint16_t>(name.size())});
  };
  std::string header = "PK\3\4";
  put(header, {kVersion});
  put_sizes(header);
  put<std::uint16_t>(header, {20}); // the part for large numbers
  header += name;
  put<std::uint16_t>(header, {1, 16});
  put(header, {bytes, bytes});
  append(std::move(header));

  directory_ += "PK\1\2";
  put(directory_, {kVersion, kVersion});
  put_sizes(directory_);
  put<std::uint16_t>(directory_, {28, 0, 0, 0});   // the part for large numbers, comment, disk, attributes
  put<std::uint32_t>(directory_, {0, kElsewhere}); // more of those, where the record begins
  directory_ += name;
  put<std::uint16_t>(directory_, {1, 24});
  put(directory_, {bytes, bytes, begin});
  ++records_;
}

void Outline::add(const std::string& name, std::string bytes, std::uint32_t crc) {
  begin_record(name, bytes.size(), crc);
  append(std::move(bytes));
}

void Outline::add_from_file(const std::string& name, std::uint64_t offset, std::uint64_t bytes, std::uint32_t crc) {
  begin_record(name, bytes, crc);
  parts_.push_back({end_, bytes, "", offset});
  end_ += bytes;
}

void Outline::add_mark(const std::string& name, std::uint64_t number) {
  std::string mark;
  put(mark, {secret_[0], secret_[1], number});
  mark.resize(kMarkBytes, '\0');
  add(name, mark, zip_crc(mark));
}

void Outline::finish() {
  const std::uint64_t begin = end_;
  const std::uint64_t bytes = directory_.size();
  std::string end = std::move(directory_);
  end += "PK\6\6";
  put<std::uint64_t>(end, {44}); // of what follows
  put(end, {kVersion, kVersion});
  put<std::uint64_t>(end, {0, records_, records_, bytes, begin}); // disks first
  end += "PK\6\7";
  put<std::uint32_t>(end, {0}); // disk
  put(end, {begin + bytes});
  put<std::uint32_t>(end, {1}); // disks
  end += "PK\5\6";
  put<std::uint16_t>(end, {0, 0, 0xFFFF, 0xFFFF}); // disks, records
  put(end, {kElsewhere, kElsewhere});
  put<std::uint16_t>(end, {0}); // comment
  append(std::move(end));
}

std::size_t Outline::read(std::uint64_t position, void* to, std::size_t bytes, const char* /*what*/) const {
  auto* out = static_cast<char*>(to);
  std::size_t done = 0;
  auto part = std::upper_bound(parts_.begin(), parts_.end(), position,
                               [](std::uint64_t at, const Part& p) { return at < p.begin; });
  for (part -= part == parts_.begin() ? 0 : 1; part != parts_.end() && done < bytes; ++part) {
    const std::uint64_t at = position + done - part->begin;
    if (at >= part->bytes) {
      continue; // the position lies behind it, or it is empty
    }
    const std::uint64_t count = std::min<std::uint64_t>(bytes - done, part->bytes - at);
    if (part->held.empty()) {
      file_->read(out + done, part->file_offset + at, count);
    } else {
      std::copy_n(part->held.begin() + static_cast<std::ptrdiff_t>(at), count, out + done);
    }
    done += count;
  }
  return done;
}

} // namespace offload
