#include <gtest/gtest.h>
#include <offload/error.h>
#include <offload/load/records.h>

#include <tests/temporary_file.h>
#include <tests/zip_maker.h>

namespace offload {
namespace {

using test::make_zip;
using test::TemporaryFile;
using test::ZipEntry;

std::string refusal(const std::vector<ZipEntry>& entries) {
  const TemporaryFile file(make_zip(entries));
  try {
    const Records records(file.path());
    return "";
  } catch (const ArchiveError& error) {
    return error.what();
  }
}

void expect_refused_archive(const std::vector<ZipEntry>& entries, const std::string& because) {
  const std::string said = refusal(entries);
  EXPECT_NE(said.find(because), std::string::npos) << "said: " << said;
}

const ZipEntry kData = {"a/data.pkl", "data"};
const ZipEntry kConstants = {"a/constants.pkl", "constants"};
const ZipEntry kVersion = {"a/version", "3"};

TEST(Records, AreFoundInCapitalsOrNot) {
  const TemporaryFile file(make_zip({{"A/DATA.PKL", "data"}, kConstants, {"a/Version", "3"}}));
  const Records records(file.path());
  EXPECT_EQ(records.read("data.pkl"), "data");
  EXPECT_EQ(records.read("constants.pkl"), "constants");
  EXPECT_EQ(records.find("Constants.pkl"), 1U);
  EXPECT_TRUE(is_text(records.all()[0]));
  EXPECT_FALSE(records.has("byteorder"));
  expect_refused_archive({kData, kConstants, {"a/BYTEORDER", "big"}}, "big-endian");
}

/// Texts that unpack to it need a thousandth of it in the file.
TEST(Records, RefusesTooMuchTextBeforeItIsRead) {
  const auto packed = [](const std::string& name, std::uint32_t size) {
    return ZipEntry{.name = name, .bytes = std::string(150 << 10, 'x'), .method = 8, .size = size};
  };
  constexpr std::uint32_t kHalf = 1 << 27;
  EXPECT_EQ(refusal({kData, kConstants, kVersion, packed("a/code/one.py", kHalf - 100)}), "");
  const std::string because = "more than 256 MiB of code and other text";
  expect_refused_archive({kData, kConstants, packed("a/code/one.py", kHalf), packed("a/code/two.PY", kHalf)}, because);
  expect_refused_archive({kData, packed("a/constants.pkl", kHalf), packed("a/code/one.py.debug_pkl", kHalf)}, because);
  expect_refused_archive({kData, kConstants, packed("a/byteorder", kHalf), packed("a/version", kHalf)}, because);
}

TEST(Records, TellsWhatIsNotThere) {
  const ZipEntry code = {"a/code/__torch__.py", ""};
  EXPECT_EQ(refusal({kData, kConstants, kVersion, code}), "");
  expect_refused_archive({kConstants, kVersion, code}, "record data.pkl is not there");
  expect_refused_archive({kData, kVersion, code}, "record constants.pkl is not there");
  expect_refused_archive({kData, kConstants, code}, "record version is not there");
  expect_refused_archive({kData, kConstants, code, {"a/version", "three"}}, "record version is no number");
  expect_refused_archive({kData, kConstants, code, {"a/.data/version", std::string(30, '9')}},
                         "record version is no number");
  expect_refused_archive({kData, kVersion}, "a state dict");
}

TEST(Records, TellsWhyAPathNamesNoFile) {
  const TemporaryFile file("x");
  for (const auto& [path, because] :
       {std::pair(file.path() + "/below", "no such file"), std::pair(file.path() + ".none", "no such file"),
        std::pair(std::string(300, 'x'), "can not be opened: File name too long")}) {
    try {
      const Records records(path);
      FAIL() << path << " was opened";
    } catch (const ArchiveError& error) {
      EXPECT_NE(std::string(error.what()).find(because), std::string::npos) << error.what();
    }
  }
}

TEST(Records, TellsWhatElsePyTorchWrites) {
  expect_refused_archive(
      {{"package/.data/extern_modules", ""}, {"package/.data/version", "6"}, {"package/model/model.pkl", "x"}},
      "is what torch.package wrote");
  const TemporaryFile mobile(std::string("\x1c\0\0\0PTMF", 8) + std::string(100, 'x'));
  try {
    const Records records(mobile.path());
    FAIL() << "it was taken for an archive";
  } catch (const ArchiveError& error) {
    EXPECT_NE(std::string(error.what()).find("a flatbuffer"), std::string::npos) << error.what();
  }
}

TEST(Records, RefusesArchivesOfBeforePyTorch14) {
  expect_refused_archive({kData, {"a/model.json", "{}"}}, "was written before PyTorch 1.4");
  expect_refused_archive({kData, kConstants, {"a/Model.json", "{}"}}, "was written before PyTorch 1.4");
}

} // namespace
} // namespace offload
