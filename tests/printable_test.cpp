#include <gtest/gtest.h>
#include <offload/core/printable.h>
#include <offload/error.h>
#include <offload/placement.h>

#include <sstream>

namespace offload {
namespace {

TEST(Printable, LeavesTextOfAnyLanguage) {
  for (const char* text :
       {"", "layers.0.weight", "gr\xC3\xBC\xC3\x9F", "\xE9\x87\x8D\xE3\x81\xBF", "\xF0\x9F\x94\xA5", "\xC2\xA0"}) {
    EXPECT_EQ(printable(text), text);
  }
}

TEST(Printable, WritesWhatControlsATerminalAsNumbers) {
  EXPECT_EQ(printable("w\x1B[31m"), "w\\x1b[31m");
  EXPECT_EQ(printable(std::string("a\0b\x7F", 4)), "a\\x00b\\x7f");
  EXPECT_EQ(printable("a\nb\tc\r", "\n\t"), "a\nb\tc\\x0d");
  EXPECT_EQ(printable("\xC2\x9B"
                      "31m"),
            "\\xc2\\x9b31m")
      << "as ESC [ in eight bits";
}

TEST(Printable, WritesBytesThatAreNoTextAsNumbers) {
  EXPECT_EQ(printable("\xFF"), "\\xff");
  EXPECT_EQ(printable("\xC3"), "\\xc3") << "cut short";
  EXPECT_EQ(printable("\xC0\x9B"), "\\xc0\\x9b") << "longer than needed";
  EXPECT_EQ(printable("\xE0\x82\x9B"), "\\xe0\\x82\\x9b") << "longer than needed";
  EXPECT_EQ(printable("\xED\xA0\x80"), "\\xed\\xa0\\x80") << "half of a pair";
  EXPECT_EQ(printable("\xF4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80") << "beyond the last";
}

TEST(Printable, AreErrorsAndPlacements) {
  const std::string name = "w\x1B[2J\xFF";
  EXPECT_EQ(Error("weight " + name + "\nis not there").what(), std::string("weight w\\x1b[2J\\xff\nis not there"));
  EXPECT_EQ(ArchiveError(name).what(), std::string("w\\x1b[2J\\xff"));
  Placement placement;
  placement.weights.push_back({name, {name}, 512, {}, {{Mode::streamed, 0, 512}}});
  placement.resident_because.push_back({name, 512, "small"});
  placement.unseen.push_back(name);
  placement.rewritten.push_back(name);
  std::ostringstream out;
  out << placement;
  EXPECT_EQ(printable(out.str(), "\n"), out.str());
  EXPECT_EQ(printable(to_json(placement), "\n"), to_json(placement));
}

TEST(Placement, TellsWhatSeveralCallersTake) {
  Placement placement;
  std::ostringstream one;
  one << placement;
  EXPECT_EQ(one.str().find("callers"), std::string::npos);
  placement.budget.reserve = 1 << 20;
  placement.predicted.round = {8, 4, 40e3, 1 << 20};
  std::ostringstream eight;
  eight << placement;
  EXPECT_NE(
      eight.str().find("8 callers make a call each in 40.000 ms, 200.0 calls/s, 1 MiB streamed a call; room for 4"),
      std::string::npos)
      << eight.str();
  EXPECT_NE(to_json(placement).find("\"calls_per_second\": 200.0"), std::string::npos) << to_json(placement);
}

} // namespace
} // namespace offload
