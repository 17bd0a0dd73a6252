#include <gtest/gtest.h>

#include <offload/runtime/sequences.h>

namespace offload::test {
namespace {

SequencePtr sequence_of(WeightId weight) { return std::make_shared<const Sequence>(Sequence{{weight}}); }

Sequence nothing_is_known() { return {{9}}; }

TEST(Sequences, ExpectWhatTheLastCallOfTheShapeOrOfTheMethodDid) {
  Sequences sequences;
  EXPECT_EQ(*sequences.expected("forward", 1, nothing_is_known), nothing_is_known());
  sequences.record("forward", 1, sequence_of(1));
  sequences.record("forward", 2, sequence_of(2));
  EXPECT_EQ(*sequences.expected("forward", 1, nothing_is_known), *sequence_of(1));
  EXPECT_EQ(*sequences.expected("forward", 3, nothing_is_known), *sequence_of(2)) << "of a shape that is new";
  EXPECT_EQ(*sequences.expected("other", 4, nothing_is_known), nothing_is_known());
}

TEST(Sequences, AreDroppedButForThoseThatAreGiven) {
  Sequences sequences;
  sequences.record("forward", 1, sequence_of(1));
  sequences.reset({{"other", sequence_of(5)}});
  EXPECT_EQ(*sequences.expected("forward", 1, nothing_is_known), nothing_is_known());
  EXPECT_EQ(*sequences.expected("other", 1, nothing_is_known), *sequence_of(5));
}

TEST(Sequences, OfManyShapesAreBounded) {
  Sequences sequences;
  for (std::size_t shape = 0; shape < 1000; ++shape) {
    sequences.record("forward", shape, sequence_of(static_cast<WeightId>(shape)));
  }
  EXPECT_EQ(*sequences.expected("forward", 999, nothing_is_known), *sequence_of(999));
  EXPECT_EQ(*sequences.expected("forward", 0, nothing_is_known), *sequence_of(999)) << "the last of the method";
}

} // namespace
} // namespace offload::test
