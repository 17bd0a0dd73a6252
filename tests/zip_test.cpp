#include <gtest/gtest.h>
#include <offload/error.h>
#include <offload/load/zip.h>

#include <cstring>

#include <tests/temporary_file.h>

namespace offload {
namespace {

using test::TemporaryFile;

template <typename Number>
void put(std::string& to, Number number) {
  to.append(reinterpret_cast<const char*>(&number), sizeof number);
}

/// What an archive says of a record, right unless a test makes it wrong.
struct Entry {
  std::string name;
  std::string bytes;
  std::uint16_t method = 0;
  std::uint16_t flags = 0;
  std::optional<std::uint32_t> size = {};         // unpacked
  std::optional<std::uint32_t> stored = {};       // in the archive
  std::optional<std::uint32_t> header = {};       // where its header is
  std::optional<std::string> name_in_header = {}; // before its bytes
  std::optional<std::uint32_t> crc = {};
};

struct Made {
  std::string bytes;
  std::size_t directory;
};

Made make(const std::vector<Entry>& entries) {
  std::string file;
  std::string directory;
  for (const Entry& entry : entries) {
    const auto begin = static_cast<std::uint32_t>(file.size());
    const auto put_sizes = [&](std::string& to, std::size_t name_bytes) {
      put(to, entry.flags);
      put(to, entry.method);
      put<std::uint32_t>(to, 0);
      put(to, entry.crc.value_or(zip_crc(entry.bytes)));
      put(to, entry.stored.value_or(static_cast<std::uint32_t>(entry.bytes.size())));
      put(to, entry.size.value_or(static_cast<std::uint32_t>(entry.bytes.size())));
      put(to, static_cast<std::uint16_t>(name_bytes));
      put<std::uint16_t>(to, 0);
    };
    const std::string own = entry.name_in_header.value_or(entry.name);
    file += "PK\3\4";
    put<std::uint16_t>(file, 20);
    put_sizes(file, own.size());
    file += own + entry.bytes;
    directory += "PK\1\2";
    put<std::uint16_t>(directory, 20);
    put<std::uint16_t>(directory, 20);
    put_sizes(directory, entry.name.size());
    put<std::uint16_t>(directory, 0);
    put<std::uint16_t>(directory, 0);
    put<std::uint16_t>(directory, 0);
    put<std::uint32_t>(directory, 0);
    put(directory, entry.header.value_or(begin));
    directory += entry.name;
  }
  const std::size_t at = file.size();
  file += directory + "PK\5\6";
  put<std::uint32_t>(file, 0);
  put(file, static_cast<std::uint16_t>(entries.size()));
  put(file, static_cast<std::uint16_t>(entries.size()));
  put(file, static_cast<std::uint32_t>(directory.size()));
  put(file, static_cast<std::uint32_t>(at));
  put<std::uint16_t>(file, 0);
  return {file, at};
}

std::string refusal(const std::string& bytes) {
  const TemporaryFile file(bytes);
  try {
    const File opened(file.path());
    for (const ZipRecord& record : read_zip_directory(opened)) {
      read_zip_record(opened, record);
    }
    return "";
  } catch (const ArchiveError& error) {
    return error.what();
  }
}

const std::vector<Entry> kTwo = {{"a/one", "first"}, {"a/two", "second bytes"}};

void expect_refused(Entry wrong, const std::string& because) {
  const std::string said = refusal(make({kTwo[0], std::move(wrong)}).bytes);
  EXPECT_NE(said.find(because), std::string::npos) << "said: " << said;
}

TEST(Zip, ReadsRecordsInTheOrderOfTheDirectory) {
  const TemporaryFile file(make(kTwo).bytes);
  const File opened(file.path());
  const auto records = read_zip_directory(opened);
  ASSERT_EQ(records.size(), 2U);
  EXPECT_EQ(records[0].name, "a/one");
  EXPECT_EQ(read_zip_record(opened, records[0]), "first");
  EXPECT_EQ(read_zip_record(opened, records[1]), "second bytes");
  EXPECT_TRUE(records[1].is_stored());
  std::string there(records[1].bytes, '\0');
  opened.read(there.data(), records[1].offset, there.size());
  EXPECT_EQ(there, "second bytes");
}

TEST(Zip, RefusesRecordsThatAreNotWhatTheDirectorySays) {
  expect_refused({.name = "a/two", .bytes = "x", .header = 0}, "not where the directory says");
  expect_refused({.name = "a/two", .bytes = "x", .header = 1 << 30}, "outside the file");
  expect_refused({.name = "a/two", .bytes = "x", .name_in_header = "a/owt"}, "not where the directory says");
  expect_refused({.name = "a/two", .bytes = "x", .size = 1 << 30, .stored = 1 << 30}, "outside the file");
  expect_refused({.name = "a/two", .bytes = "x", .size = 2}, "says that 1 bytes hold 2");
  expect_refused({.name = "a/two", .bytes = "x", .method = 8, .size = 1 << 30}, "says that 1 bytes hold");
  expect_refused({.name = "a/two", .bytes = "x", .method = 8, .size = 100}, "can not be unpacked");
  expect_refused({.name = "a/two", .bytes = "x", .method = 12}, "packed by method 12");
  expect_refused({.name = "a/two", .bytes = "x", .flags = 1}, "encrypted");
  expect_refused({.name = "a/two", .bytes = "x", .crc = 7}, "checksum");
  expect_refused({.name = "a/one", .bytes = "x"}, "twice");
}

TEST(Zip, RefusesRecordsThatOverlap) {
  // The second lies within the bytes of the first, header and all.
  const std::string inner = make({{"a/two", "x"}}).bytes.substr(0, 36);
  std::vector<Entry> entries = {{"a/one", inner}, {.name = "a/two", .bytes = "x", .header = 35}};
  const std::string said = refusal(make(entries).bytes);
  EXPECT_NE(said.find("overlaps record a/one"), std::string::npos) << "said: " << said;
}

TEST(Zip, IsReadOrRefusedWhereverItIsCut) {
  const std::string whole = make(kTwo).bytes;
  for (std::size_t bytes = 0; bytes < whole.size(); ++bytes) {
    EXPECT_NE(refusal(whole.substr(0, bytes)), "") << "cut at " << bytes;
  }
}

TEST(Zip, IsReadOrRefusedWhateverByteIsWrong) {
  const std::string whole = make(kTwo).bytes;
  for (std::size_t at = 0; at < whole.size(); ++at) {
    for (const int flip : {1, 0x80, 0xFF}) {
      std::string wrong = whole;
      wrong[at] = static_cast<char>(wrong[at] ^ flip);
      refusal(wrong); // neither a crash nor another kind of error
    }
  }
}

} // namespace
} // namespace offload
