#include <gtest/gtest.h>
#include <offload/error.h>
#include <offload/load/code.h>

namespace offload {
namespace {

std::string times(int count, const std::string& text) {
  std::string all;
  for (int i = 0; i < count; ++i) {
    all += text;
  }
  return all;
}

std::string refusal(const std::string& expression) {
  try {
    check_code("def forward(self, x: List[Tensor]) -> Tensor:\n  return " + expression + "\n", "model.py");
    return "";
  } catch (const ArchiveError& error) {
    return error.what();
  }
}

TEST(Code, MayNestAsDeepAsNobodyWrites) {
  for (const char* open : {"(", "[", "-", "not ", "torch.neg(", "x + ", "x if y else "}) {
    EXPECT_EQ(refusal(times(300, open)), "") << open;
  }
}

TEST(Code, ThatEndsTheStackIsRefused) {
  for (const char* open :
       {"(", "[", "{", "-", "~", "not ", "torch.neg(", "x + ", "x**", "x if y else ", "x.y", "f()"}) {
    EXPECT_NE(refusal(times(5000, open)).find("record model.py nests too deep, at byte"), std::string::npos) << open;
  }
  EXPECT_NE(refusal("1\n" + std::string(5000, ' ') + "x").find("nests too deep"), std::string::npos);
}

TEST(Code, MayBeLong) {
  EXPECT_EQ(refusal("[" + times(20'000, "-1, ") + "2]"), "");
  EXPECT_EQ(refusal("f(" + times(20'000, "(a + b), [c], ") + "2)"), "");
  EXPECT_EQ(refusal(times(20'000, "a + b\n  x = f(y)[0]\n")), "");
  EXPECT_EQ(refusal('"' + times(20'000, "((\\\"[[") + '"'), "");
  EXPECT_EQ(refusal("\"\"\"" + times(20'000, "((\n\"[[") + "\"\"\""), "");
  EXPECT_EQ(refusal("x # " + times(20'000, "((")), "");
}

TEST(Code, SubscriptsHaveAnIndex) {
  for (const char* right :
       {"[]", "annotate(List[int], [])", "x[0]", "x[:]", "d[\"a\"]", "f(x)[y][z]", "x if [] else []"}) {
    EXPECT_EQ(refusal(right), "") << right;
  }
  for (const char* wrong : {"x[]", "x[ ]", "f(x)[]", "x[0][]", "\"a\"[]"}) {
    EXPECT_NE(refusal(wrong).find("has a subscript without an index"), std::string::npos) << wrong;
  }
}

} // namespace
} // namespace offload
