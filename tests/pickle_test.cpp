#include <gtest/gtest.h>
#include <offload/error.h>
#include <offload/load/pickle.h>
#include <offload/load/source_ranges.h>
#include <offload/load/storage_types.h>

namespace offload {
namespace {

std::string text(const std::string& value) {
  std::string out = "X";
  for (int i = 0; i < 4; ++i) {
    out += static_cast<char>(value.size() >> (8 * i));
  }
  return out + value;
}
std::string small(int value) { return std::string("K") + static_cast<char>(value); }
std::string global(const std::string& module, const std::string& name) { return "c" + module + "\n" + name + "\n"; }
std::string tuple(const std::string& elements) { return "(" + elements + "t"; }
std::string storage(int numel) {
  return tuple(text("storage") + global("torch", "FloatStorage") + text("0") + text("cpu") + small(numel)) + "Q";
}
std::string tensor(const std::string& of, int offset, const std::string& sizes, const std::string& strides) {
  return global("torch._utils", "_rebuild_tensor_v2") + tuple(of + small(offset) + tuple(sizes) + tuple(strides)) + "R";
}
std::string pickle(const std::string& value) { return "\x80\x02" + value + "."; }

std::optional<PickleSummary> read(const std::string& bytes) {
  std::uint64_t steps = kMostPickleSteps;
  return read_pickle(bytes, "data.pkl", steps);
}

std::string refusal(const std::string& bytes) {
  try {
    read(bytes);
    return "";
  } catch (const ArchiveError& error) {
    return error.what();
  }
}
void expect_refused(const std::string& value, const std::string& because) {
  const std::string said = refusal(pickle(value));
  EXPECT_NE(said.find(because), std::string::npos) << "said: " << said;
}

TEST(Pickle, FindsTensorsAndWhatTheyLieOn) {
  const auto summary = read(pickle(tensor(storage(12), 2, small(2) + small(3), small(4) + small(1))));
  ASSERT_TRUE(summary);
  ASSERT_EQ(summary->storages.size(), 1U);
  EXPECT_EQ(summary->storages[0].key, "0");
  EXPECT_EQ(summary->storages[0].numel, 12U);
  EXPECT_EQ(element_bytes(summary->storages[0].type), 4U);
  EXPECT_EQ(summary->globals.count("torch._utils _rebuild_tensor_v2"), 1U);
}

TEST(Pickle, RefusesTensorsLargerThanTheirStorage) {
  EXPECT_EQ(refusal(pickle(tensor(storage(6), 0, small(6), small(1)))), "");
  expect_refused(tensor(storage(6), 0, small(7), small(1)), "larger than its storage");
  expect_refused(tensor(storage(6), 1, small(6), small(1)), "larger than its storage");
  expect_refused(tensor(storage(6), 0, small(2), small(6)), "larger than its storage");
  const std::string huge = std::string("\x8a\x08") + std::string(7, '\xFF') + '\x7F'; // 2^63 - 1
  std::string sizes;
  for (int i = 0; i < 10; ++i) {
    sizes += huge;
  }
  expect_refused(tensor(storage(6), 0, sizes, sizes), "larger than its storage");
  EXPECT_EQ(refusal(pickle(tensor(storage(6), 0, small(0) + huge, huge + huge))), ""); // an empty one
  const std::string negative = "J" + std::string(4, '\xFF');
  expect_refused(tensor(storage(6), 0, negative, small(1)), "of sizes that are none");
  expect_refused(tensor(storage(6), 0, small(1), negative), "of sizes that are none");
}

TEST(Pickle, RefusesQuantisedTensorsLargerThanTheirStorage) {
  const auto quantised = [](const std::string& type, int numel, int size) {
    const std::string of =
        tuple(text("storage") + global("torch", type) + text("0") + text("cpu") + small(numel)) + "Q";
    const std::string scheme = tuple(global("torch", "per_tensor_affine") + "G" + std::string(8, '\0') + small(0));
    return global("torch._utils", "_rebuild_qtensor") +
           tuple(of + small(0) + tuple(small(size)) + tuple(small(1)) + scheme + "\x89N") + "R";
  };
  EXPECT_EQ(refusal(pickle(quantised("QInt32Storage", 6, 6))), "");
  expect_refused(quantised("QInt32Storage", 6, 7), "larger than its storage");
  EXPECT_EQ(refusal(pickle(quantised("QUInt4x2Storage", 6, 12))), "");
  expect_refused(quantised("QUInt4x2Storage", 6, 13), "larger than its storage");
  EXPECT_EQ(element_bytes("QInt32Storage"), 4U);
  expect_refused(global("torch._tensor", "_rebuild_from_type_v2"), "a tensor of a Python class");
}

TEST(Pickle, RefusesWhatTakesTooMuchMemory) {
  const std::string because = "takes more steps than the 16777216 that an archive may take";
  expect_refused("(" + std::string(kMostPickleSteps, 'N') + "t", because);
  expect_refused(std::string(kMostPickleSteps, '('), because);
  std::uint64_t steps = 5; // of several pickles together
  EXPECT_TRUE(read_pickle(pickle("N"), "data.pkl", steps));
  EXPECT_EQ(steps, 4U);
  EXPECT_THROW(read_pickle(pickle("(NNNt"), "data.pkl", steps), ArchiveError);
}

TEST(Pickle, RefusesTypesThatEndTheStackOfTheParser) {
  const auto tagged = [](const std::string& type) {
    return global("torch.jit._pickle", "restore_type_tag") + tuple("]" + text(type)) + "R";
  };
  EXPECT_EQ(refusal(pickle(tagged("List[List[int]]"))), "");
  std::string lists;
  std::string names = "a";
  for (int i = 0; i < 30'000; ++i) {
    lists += "List[";
    names += ".a";
  }
  for (const std::string& type : {lists, names, std::string(30'000, '('), std::string(30'000, '-')}) {
    expect_refused(tagged(type), "nests too deep");
  }
}

TEST(Pickle, RefusesWhatWasNotSaidBefore) {
  expect_refused("t", "a group that has not begun");
  expect_refused("N\x86", "takes a value that is not there");
  expect_refused("N(\x85", "takes a value that is not there"); // past a mark
  expect_refused("h\x01", "names value 1 of 0");
  expect_refused("Nq\x05", "numbers a value 5");
  expect_refused("NN", "in the middle of a value");
  expect_refused("N(", "in the middle of a value");
  expect_refused("NNR", "no function");
  expect_refused("(Nd", "key without a value");
  expect_refused("NNNs", "into what can hold none");
  expect_refused("NQ", "a storage in a way that is not known");
}

TEST(Pickle, RefusesWhatNestsTooDeep) {
  std::string deep = "N";
  for (int i = 0; i < 2000; ++i) {
    deep += '\x85';
  }
  expect_refused(deep, "nests too deep");
  // From the outside in, through numbers: each list gets the next after it went into another.
  expect_refused("]q" + std::string(1, '\0') +
                     "(]q\x01"
                     "eh\x01(]eN",
                 "after it was put into another");
}

/// ("FORMAT_WITH_STRING_TABLE", texts, ((byte, ((numbers of texts), file, line), begin, end), tag), ...))
std::string ranges(const std::string& texts, const std::string& source, int begin, int end) {
  return tuple(text("FORMAT_WITH_STRING_TABLE") + tuple(texts) +
               tuple(tuple(small(0) + tuple(source + small(begin) + small(end)) + small(7))));
}
std::string source(const std::string& numbers, int file) {
  const std::string list = global("torch.jit._pickle", "build_intlist") + tuple("](" + numbers + "e") + "R";
  return tuple(list + small(file) + small(1));
}
std::string refusal_of_ranges(const std::string& value) {
  try {
    std::uint64_t steps = kMostPickleSteps;
    check_source_ranges(pickle(value), "model.py.debug_pkl", steps);
    return "";
  } catch (const ArchiveError& error) {
    return error.what();
  }
}

TEST(Pickle, SourceRangesLieWithinTheirSources) {
  const std::string two = text("x = 1\n") + text("model.py"); // of 6 and 8 bytes
  EXPECT_EQ(refusal_of_ranges(ranges(two, source(small(0), 1), 0, 6)), "");
  EXPECT_EQ(refusal_of_ranges(ranges(two, source("", 1), 0, 1)), ""); // as PyTorch writes of what comes from nowhere
  EXPECT_EQ(refusal_of_ranges(tuple(tuple(small(0) + tuple(tuple(text("abc") + "NN") + small(1) + small(2)) + "N"))),
            "");
  const std::string none = "is no table of source ranges";
  for (const std::string& wrong : {
           ranges(two, source(small(0), 1), 0, 8),
           ranges(two, source(small(0), 1), 5, 4),
           ranges(two, source(small(2), 1), 0, 1),
           ranges(two, source(small(0), 2), 0, 1),
           ranges(two + small(3), source(small(0), 1), 0, 1),
           ranges("", source("", 0), 0, 1),
           ranges(two, tuple(""), 0, 1),
           tuple(""),
           std::string("N"),
           global("os", "system"),
       }) {
    EXPECT_NE(refusal_of_ranges(wrong).find(none), std::string::npos) << refusal_of_ranges(wrong);
  }
}

TEST(Pickle, LeavesWhatItDoesNotKnowToOthers) { EXPECT_FALSE(read(pickle("N\x93"))); }

TEST(Pickle, IsReadOrRefusedWhereverItIsCutAndWhateverByteIsWrong) {
  const std::string whole = pickle("}q" + std::string(1, '\0') + "(" + text("w") +
                                   tensor(storage(12), 2, small(2) + small(3), small(4) + small(1)) + text("b") + "Nu");
  ASSERT_EQ(refusal(whole), "");
  for (std::size_t at = 0; at < whole.size(); ++at) {
    EXPECT_NE(refusal(whole.substr(0, at)), "") << "cut at " << at;
    for (int value = 0; value < 256; ++value) {
      std::string wrong = whole;
      wrong[at] = static_cast<char>(value);
      refusal(wrong); // neither a crash nor another kind of error
    }
  }
}

} // namespace
} // namespace offload
