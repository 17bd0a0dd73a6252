#include <gtest/gtest.h>
#include <offload/error.h>
#include <offload/load/zip.h>

#include <cstring>

#include <tests/temporary_file.h>
#include <tests/zip_maker.h>

namespace offload {
namespace {

using test::make_zip;
using test::TemporaryFile;
using test::ZipEntry;

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

const std::vector<ZipEntry> kTwo = {{"a/one", "first"}, {"a/two", "second bytes"}};

void expect_refused(ZipEntry wrong, const std::string& because) {
  const std::string said = refusal(make_zip({kTwo[0], std::move(wrong)}));
  EXPECT_NE(said.find(because), std::string::npos) << "said: " << said;
}

TEST(Zip, ReadsRecordsInTheOrderOfTheDirectory) {
  const TemporaryFile file(make_zip(kTwo));
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
  expect_refused({.name = "a/two", .bytes = "x", .flags = 0x20}, "is a patch");
  expect_refused({.name = "a/one", .bytes = "x"}, "twice");
}

TEST(Zip, RefusesWhatIsOneOfSeveralPartsOrAFolderWithBytes) {
  const std::string whole = make_zip(kTwo);
  const std::size_t end = whole.rfind("PK\5\6");
  const std::size_t last = whole.rfind("PK\1\2");
  const auto with = [&](std::size_t at, char value) {
    std::string changed = whole;
    changed[at] = value;
    return refusal(changed);
  };
  for (const std::size_t at : {end + 4, end + 6, end + 8}) {
    EXPECT_NE(with(at, 7).find("is one of several parts"), std::string::npos) << at - end;
  }
  EXPECT_NE(with(last + 34, 1).find("lies in another part"), std::string::npos);
  EXPECT_NE(with(last + 38, 0x10).find("is a folder"), std::string::npos);
  EXPECT_NE(with(last + 33, 1).find("cut short"), std::string::npos); // its comment
}

TEST(Zip, TellsNoCapitalsFromSmallLetters) {
  expect_refused({.name = "a/One", .bytes = "x"}, "record a/One is there twice");
  expect_refused({.name = "A/one", .bytes = "x"}, "record A/one is there twice");
  EXPECT_EQ(refusal(make_zip({kTwo[0], {"a/on\xC9", "x"}, {"a/on\xE9", "x"}})), ""); // only A to Z
}

TEST(Zip, RefusesRecordsThatOverlap) {
  // The second lies within the bytes of the first, header and all.
  const std::string inner = make_zip({{"a/two", "x"}}).substr(0, 36);
  std::vector<ZipEntry> entries = {{"a/one", inner}, {.name = "a/two", .bytes = "x", .header = 35}};
  const std::string said = refusal(make_zip(entries));
  EXPECT_NE(said.find("overlaps record a/one"), std::string::npos) << "said: " << said;
}

TEST(Zip, IsReadOrRefusedWhereverItIsCut) {
  const std::string whole = make_zip(kTwo);
  for (std::size_t bytes = 0; bytes < whole.size(); ++bytes) {
    EXPECT_NE(refusal(whole.substr(0, bytes)), "") << "cut at " << bytes;
  }
}

TEST(Zip, IsReadOrRefusedWhateverByteIsWrong) {
  const std::string whole = make_zip(kTwo);
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
