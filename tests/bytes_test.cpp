#include <gtest/gtest.h>

#include <offload/bytes.h>
#include <offload/error.h>

namespace offload {
namespace {

constexpr std::uint64_t kMost = ~0ULL;

TEST(ParseBytes, ReadsSizes) {
  const std::vector<std::pair<std::string, std::uint64_t>> sizes = {
      {"0", 0},
      {"123", 123},
      {"17B", 17},
      {"64KiB", 64_KiB},
      {"1MiB", 1_MiB},
      {"8GiB", 8_GiB},
      {"1.5GiB", 1536_MiB},
      {"0.5KiB", 512},
      {"16384.0MiB", 16_GiB},
      {"18446744073709551615", kMost},
      {"17179869183GiB", 17179869183_GiB},
  };
  for (const auto& [text, bytes] : sizes) {
    EXPECT_EQ(parse_bytes(text), bytes) << text;
  }
}

TEST(ParseBytes, NamesWhatIsNotASize) {
  for (const std::string text : {"",
                                 "KiB",
                                 "GiB",
                                 "-1",
                                 "-1GiB",
                                 "+1",
                                 "1 GiB",
                                 " 1",
                                 "1 ",
                                 "1GB",
                                 "1gib",
                                 "1KiBs",
                                 "0x10",
                                 "1e3",
                                 "1,5GiB",
                                 "1.5.5",
                                 "nan",
                                 "inf",
                                 "infGiB",
                                 "nanGiB",
                                 "-0.5",
                                 "18446744073709551616",
                                 "17179869184GiB",
                                 "17179869184.5GiB",
                                 "99999999999999999999999999999",
                                 "eight",
                                 "8GiB8GiB",
                                 "8KiBMiB"}) {
    try {
      parse_bytes(text);
      ADD_FAILURE() << "'" << text << "' was taken";
    } catch (const InputError& error) {
      EXPECT_EQ(std::string(error.what()).find("'" + text + "'"), 0U) << error.what();
    }
  }
  EXPECT_THROW(parse_bytes(std::string(500, '9')), InputError);
}

TEST(FormatBytes, ShowsThreeFigures) {
  const std::vector<std::pair<std::uint64_t, std::string>> sizes = {
      {0, "0 B"},
      {17, "17 B"},
      {1023, "1023 B"},
      {1_KiB, "1 KiB"},
      {64_KiB, "64 KiB"},
      {1536, "1.50 KiB"},
      {1536_MiB, "1.50 GiB"},
      {8_GiB, "8 GiB"},
      {12_MiB + 512_KiB, "12.5 MiB"},
      {345_MiB + 512_KiB + 1, "346 MiB"},
      {1000_GiB, "1000 GiB"},
  };
  for (const auto& [bytes, text] : sizes) {
    EXPECT_EQ(format_bytes(bytes), text);
  }
}

TEST(FormatBytes, RoundsIntoTheNextUnit) {
  EXPECT_EQ(format_bytes(10_KiB - 1), "10.0 KiB");
  EXPECT_EQ(format_bytes(100_KiB - 1), "100 KiB");
  EXPECT_EQ(format_bytes(1_MiB - 1), "1.00 MiB");
  EXPECT_EQ(format_bytes(1_GiB - 1), "1.00 GiB");
}

TEST(AlignUp, RoundsToTheNextMultiple) {
  EXPECT_EQ(align_up(0, 512), 0U);
  EXPECT_EQ(align_up(1, 512), 512U);
  EXPECT_EQ(align_up(512, 512), 512U);
  EXPECT_EQ(align_up(513, 512), 1024U);
}

} // namespace
} // namespace offload
