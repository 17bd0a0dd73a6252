// Modules whose weights stay on the file.

#include <ATen/ops/randint.h>
#include <offload/feed/stores.h>
#include <offload/load/archive.h>
#include <torch/library.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include <tests/modules.h>
#include <tests/temporary_file.h>

namespace offload {
namespace {

using namespace test;

constexpr int kWeights = 16;

/// On the host weights stay on the file anyway; for a GPU, where host_budget has no room for most of them.
Options options_on_file(std::uint64_t weights) {
  Options options = options_for(budget(weights));
  if (kDevice.is_cuda()) {
    options.host_budget = kStagingBytes + FileReader::kBytesHeld + (kWeights / 4) * kWeightBytes;
  }
  return options;
}

class FileModule : public testing::Test {
 protected:
  FileModule() : module_(make(kWeights, chain(kWeights))), reference_(module_.deepcopy(), kDevice) {
    module_.save(file_.path());
  }

  void expect_same(Module& offloaded) {
    const at::Tensor x = rows();
    EXPECT_EQ(tools::first_difference(offloaded.forward({x}), reference_.run("forward", {x})), "");
  }

  TemporaryFile file_;
  torch::jit::Module module_;
  Reference reference_;
};

TEST_F(FileModule, IsBitIdenticalAtEveryBudgetAndMovesWhatThePlanSays) {
  for (const std::uint64_t weights : {1, 2, 7, kWeights, kWeights + 1}) {
    Module offloaded = load(file_.path(), options_on_file(weights));
    expect_same(offloaded);
    leave_room(offloaded, weights);
    for (int i = 0; i < 2; ++i) {
      expect_same(offloaded);
    }
    const auto used = [&] {
      const Stats stats = offloaded.stats();
      return stats.bytes_streamed - stats.bytes_ahead;
    };
    const std::uint64_t before = used();
    expect_same(offloaded);
    const Placement placement = offloaded.placement();
    EXPECT_EQ(used() - before, placement.predicted.streamed_bytes) << weights << " weights";
    EXPECT_EQ(placement.predicted.streamed_bytes == 0, weights >= kWeights);
    EXPECT_GT(placement.budget.file, 0U);
    EXPECT_LE(offloaded.stats().peak_device_bytes, placement.budget.vram);
  }
}

/// On the host, weights that are cached are not copied, unless somebody may write them.
TEST_F(FileModule, ReadsWeightsInThePageCacheUnlessToldToCopyThem) {
  if (kDevice.is_cuda()) {
    GTEST_SKIP() << "a GPU does not read the page cache";
  }
  for (const bool maps : {true, false}) {
    Options options = options_on_file(4);
    options.map_file = maps;
    Module offloaded = load(file_.path(), options);
    for (int call = 0; call < 3; ++call) {
      expect_same(offloaded);
    }
    EXPECT_GT(offloaded.placement().budget.ring, 0U);
    EXPECT_EQ(offloaded.stats().bytes_in_cache > 0, maps);
  }
}

TEST_F(FileModule, GivesAttributesAndTakesAnotherBudgetFromTheFile) {
  Module offloaded = load(file_.path(), options_on_file(2));
  expect_same(offloaded);
  EXPECT_EQ(tools::first_difference(offloaded.attr("w15"), module_.attr("w15")), "");
  for (const int weights : {kWeights + 1, 1, 4}) {
    leave_room(offloaded, weights);
    expect_same(offloaded);
  }
}

std::uint64_t bytes_read() {
  std::ifstream counts("/proc/self/io");
  std::string key;
  std::uint64_t bytes = 0;
  counts >> key >> bytes; // rchar: by system calls, cached or not
  return bytes;
}

/// Such weights come to host memory beside the first call: on the host tables of which rows are looked up, for a GPU
/// all that host_budget has room for.
TEST_F(FileModule, WhatComesToMemoryIsThereWhenItIsReadAndIsTold) {
  const torch::jit::Module module = make(3,
                                         "def forward(self, x, i):\n  x = x + torch.embedding(self.w1, i)\n"
                                         "  return torch.linear(x, self.w0) + torch.embedding(self.w2, i)\n");
  module.save(file_.path());
  const at::Tensor x = rows();
  const at::Tensor indices = at::randint(0, kWidth, {x.size(0)}, at::kLong).to(kDevice);
  const at::Tensor expected = Reference(module.deepcopy(), kDevice).run("forward", {x, indices}).toTensor();
  Options options = options_for(budget(2));
  std::atomic<std::uint64_t> come = 0;
  std::atomic<std::uint64_t> all = 0;
  for (int round = 0; round < 20; ++round) {
    options.progress = [&](std::uint64_t done, std::uint64_t total) {
      EXPECT_GT(done, round == 0 ? come.load() : 0);
      come = done;
      all = total;
    };
    Module offloaded = load(file_.path(), options);
    for (int call = 0; call < 2; ++call) {
      EXPECT_TRUE(offloaded.forward({x, indices}).toTensor().equal(expected));
    }
    EXPECT_EQ(tools::first_difference(offloaded.attr("w2"), module.attr("w2")), "");
    for (int waited = 0; come < all && waited < 5000; ++waited) { // progress is reported after the bytes can be used
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    EXPECT_EQ(come, all);
    EXPECT_EQ(all, (kDevice.is_cuda() ? 3 : 2) * kWeightBytes + kWidth * 4);
  }
}

TEST_F(FileModule, TellsWhatCanNotComeToMemoryAtEachCallThatNeedsIt) {
  const torch::jit::Module module = make(1, "def forward(self, i):\n  return torch.embedding(self.w0, i)\n");
  module.save(file_.path());
  const torch::jit::Module archive = read_archive(file_.path(), Weights::on_file);
  std::fstream(file_.path(), std::ios::binary | std::ios::in | std::ios::out).seekp(1 << 18).write("changed", 7);
  // Times of writing may be as coarse as a tick of the kernel.
  std::filesystem::last_write_time(file_.path(),
                                   std::filesystem::last_write_time(file_.path()) + std::chrono::seconds(1));
  Module offloaded = wrap(archive, options_for(budget(2)));
  for (int call = 0; call < 3; ++call) {
    try {
      offloaded.forward({at::randint(0, kWidth, {2}, at::kLong).to(kDevice)});
      FAIL() << "bytes of another file were used";
    } catch (const ArchiveError& error) {
      EXPECT_NE(std::string(error.what()).find(file_.path()), std::string::npos) << error.what();
    }
  }
}

/// A kernel that returns what it is given, where its operator says otherwise. Source code names only operators of
/// PyTorch's own namespace.
at::Tensor returned(const at::Tensor& weight) { return weight; }
TORCH_LIBRARY_FRAGMENT(aten, library) { library.def("_returned_by_test(Tensor weight) -> Tensor"); }
TORCH_LIBRARY_IMPL(aten, CPU, library) { library.impl("_returned_by_test", returned); }
TORCH_LIBRARY_IMPL(aten, CUDA, library) { library.impl("_returned_by_test", returned); }

/// What others do to the file while a call is on its way.
std::function<void()> meanwhile;
at::Tensor with_others(const at::Tensor& x) {
  meanwhile();
  return x;
}
TORCH_LIBRARY_FRAGMENT(aten, library) { library.def("_with_others_by_test(Tensor x) -> Tensor"); }
TORCH_LIBRARY_IMPL(aten, CPU, library) { library.impl("_with_others_by_test", with_others); }
TORCH_LIBRARY_IMPL(aten, CUDA, library) { library.impl("_with_others_by_test", with_others); }

TEST_F(FileModule, TellsAFileThatIsOverwrittenWhileACallReadsIt) {
  std::string source = chain(kWeights);
  source.replace(source.rfind("return x"), std::string::npos, "return torch._with_others_by_test(x)\n");
  const torch::jit::Module module = make(kWeights, source);
  module.save(file_.path());
  meanwhile = [] {};
  Module offloaded = load(file_.path(), options_on_file(2));
  Reference reference(module, kDevice);
  for (int call = 0; call < 3; ++call) {
    const at::Tensor x = rows();
    EXPECT_EQ(tools::first_difference(offloaded.forward({x}), reference.run("forward", {x})), "");
  }
  meanwhile = [&] {
    std::fstream(file_.path(), std::ios::binary | std::ios::in | std::ios::out).seekp(1 << 20).write("changed", 7);
  };
  if (kDevice.is_cpu()) { // a GPU has read them by then
    EXPECT_THROW(offloaded.forward({rows()}), ArchiveError);
  }
}

TEST_F(FileModule, WhatLeavesACallThroughAnOperatorIsACopy) {
  std::string source = chain(kWeights - 1);
  source.insert(source.rfind('\n'), ", torch._returned_by_test(self.w15)");
  const torch::jit::Module module = make(kWeights, source);
  module.save(file_.path());
  Module offloaded = load(file_.path(), options_on_file(2));
  std::vector<at::Tensor> left;
  for (int call = 0; call < 4; ++call) {
    left.push_back(offloaded.forward({rows()}).toTupleRef().elements()[1].toTensor());
    leave_room(offloaded, 2);
  }
  for (const at::Tensor& each : left) {
    EXPECT_EQ(tools::first_difference(each.cpu(), module.attr("w15")), "");
  }
}

TEST_F(FileModule, ReadsNoWeightUntilOneIsNeeded) {
  const std::uint64_t before = bytes_read();
  const torch::jit::Module archive = read_archive(file_.path(), Weights::on_file);
  EXPECT_LT(bytes_read() - before, kWeightBytes / 4);
  const at::Tensor weight = archive.attr("w0").toTensor();
  EXPECT_EQ(weight.sizes(), c10::IntArrayRef({kWidth, kWidth}));
  try {
    weight.sum();
    FAIL() << "bytes that were not read were used";
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what()).find("w0 lies on the file"), std::string::npos) << error.what();
  }
}

TEST_F(FileModule, TheFirstCallBringsWhatStaysOnce) {
  if (kDevice.is_cuda()) {
    GTEST_SKIP() << "what stays on a GPU is known when activations have been measured, and comes again then";
  }
  const torch::jit::Module module =
      make(kWeights, "def forward(self, x, i):\n  x = x + torch.embedding(self.w15, i)\n" +
                         chain(kWeights - 1).substr(std::string("def forward(self, x):\n").size()));
  module.save(file_.path());
  const at::Tensor indices = at::randint(0, kWidth, {3}, at::kLong);
  for (const int weights : {kWeights / 2, kWeights + 1}) {
    const std::uint64_t before = bytes_read();
    Module offloaded = load(file_.path(), options_on_file(weights));
    offloaded.forward({rows(), indices});
    const std::uint64_t ring = offloaded.placement().budget.ring; // is filled anew when the module is replanned
    EXPECT_LT(bytes_read() - before, kWeights * kWeightBytes + ring + kWeightBytes) << weights << " weights";
  }
}

TEST_F(FileModule, TiedWeightsStayOne) {
  module_.register_parameter("tied", module_.attr("w3").toTensor(), false);
  module_.save(file_.path());
  const torch::jit::Module archive = read_archive(file_.path(), Weights::on_file);
  EXPECT_TRUE(archive.attr("tied").toTensor().storage().is_alias_of(archive.attr("w3").toTensor().storage()));
}

TEST_F(FileModule, TellsAFileThatIsCutOrOverwrittenAtEveryCallAndNothingElseSuffers) {
  for (const auto& [cut, maps] : {std::pair(true, true), {true, false}, {false, true}, {false, false}}) {
    module_.save(file_.path());
    Options options = options_on_file(2);
    options.map_file = maps;
    Module offloaded = load(file_.path(), options);
    expect_same(offloaded);
    leave_room(offloaded, 2);
    expect_same(offloaded);
    if (cut) {
      std::filesystem::resize_file(file_.path(), std::filesystem::file_size(file_.path()) / 2);
    } else {
      std::fstream(file_.path(), std::ios::binary | std::ios::in | std::ios::out).seekp(1 << 20).write("changed", 7);
      std::filesystem::last_write_time(file_.path(),
                                       std::filesystem::file_time_type::clock::now() + std::chrono::seconds(1));
    }
    int failed = 0;
    for (int i = 0; i < 4; ++i) { // what was prefetched before is still right
      try {
        expect_same(offloaded);
      } catch (const ArchiveError& error) {
        EXPECT_NE(std::string(error.what()).find("was changed while it was in use"), std::string::npos) << error.what();
        EXPECT_EQ(std::string(error.what()).find("interpreter"), std::string::npos) << error.what();
        ++failed;
      }
    }
    EXPECT_GE(failed, 3);
    EXPECT_THROW(offloaded.attr("w9"), ArchiveError);
    EXPECT_THROW(offloaded.set_vram_budget(budget(4)), ArchiveError);
    EXPECT_THROW(offloaded.forward({rows()}), ArchiveError);
    Pair other(module_, options_for(budget(2)));
    other.expect_same({rows()});
  }
}

/// What is resident, as what streams can not come any more.
TEST_F(FileModule, WhatIsPlacedGoesOnWhenTheFileHasChanged) {
  for (const bool cut : {true, false}) {
    module_.save(file_.path());
    Module offloaded = load(file_.path(), options_on_file(kWeights + 1));
    expect_same(offloaded);
    leave_room(offloaded, kWeights + 1);
    expect_same(offloaded);
    ASSERT_EQ(offloaded.placement().budget.ring, 0U);
    const std::uint64_t budget_before = offloaded.placement().budget.vram;
    if (cut) {
      std::filesystem::resize_file(file_.path(), std::filesystem::file_size(file_.path()) / 2);
    } else {
      std::filesystem::last_write_time(file_.path(),
                                       std::filesystem::file_time_type::clock::now() + std::chrono::seconds(1));
    }
    for (const std::uint64_t bytes : {offloaded.placement().budget.minimum, 2 * budget_before}) {
      try {
        offloaded.set_vram_budget(bytes);
        FAIL() << "the weights were given up for what can not come";
      } catch (const ArchiveError& error) {
        EXPECT_NE(std::string(error.what()).find("was changed"), std::string::npos) << error.what();
      }
      EXPECT_EQ(offloaded.placement().budget.vram, budget_before);
      for (int call = 0; call < 2; ++call) {
        expect_same(offloaded);
      }
    }
    EXPECT_EQ(tools::first_difference(offloaded.attr("w15"), module_.attr("w15")), "");
  }
}

TEST_F(FileModule, ProgressMayAskAHandleThatIsAssignedToMeanwhile) {
  const torch::jit::Module module = make(3,
                                         "def forward(self, x, i):\n  x = x + torch.embedding(self.w1, i)\n"
                                         "  return torch.linear(x, self.w0) + torch.embedding(self.w2, i)\n");
  module.save(file_.path());
  const Module little = wrap(make(1, chain(1)), options_for(budget(1)));
  for (int round = 0; round < 20; ++round) {
    Module handle = little;
    Options options = options_for(budget(2));
    options.progress = [&](std::uint64_t, std::uint64_t) { static_cast<void>(handle.stats()); };
    handle = load(file_.path(), options);
    if (round % 2 == 0) {
      handle = little; // the module ends while it tells
    }
  }
}

std::atomic<int> bus_errors = 0;

/// Without a mapping of the file, which would end the program here, or call the handler that it has for such signals.
TEST_F(FileModule, TellsAFileThatIsCutAtAnyMoment) {
  struct sigaction handler{};
  struct sigaction before{};
  handler.sa_handler = [](int) { ++bus_errors; };
  ASSERT_EQ(sigaction(SIGBUS, &handler, &before), 0);
  std::mt19937 dice(7);
  const std::uintmax_t size = std::filesystem::file_size(file_.path());
  for (int round = 0; round < 100; ++round) {
    module_.save(file_.path());
    Options options = options_on_file(2);
    options.map_file = false;
    Module offloaded = load(file_.path(), options);
    std::thread cutter([&, wait = dice() % 4000, at = size / 8 + dice() % (size / 2)] {
      std::this_thread::sleep_for(std::chrono::microseconds(wait));
      std::filesystem::resize_file(file_.path(), at);
    });
    bool reported = false;
    for (int call = 0; call < 1000 && !reported; ++call) {
      try {
        expect_same(offloaded);
      } catch (const ArchiveError&) {
        reported = true;
      }
    }
    cutter.join();
    EXPECT_TRUE(reported) << "round " << round;
    EXPECT_THROW(offloaded.forward({rows()}), ArchiveError);
  }
  EXPECT_EQ(bus_errors, 0);
  ASSERT_EQ(sigaction(SIGBUS, &before, nullptr), 0);
  Pair other(module_, options_for(budget(2)));
  other.expect_same({rows()});
}

TEST_F(FileModule, RunsOnAFileThatIsGoneOrReplacedByAnother) {
  Module offloaded = load(file_.path(), options_on_file(2));
  expect_same(offloaded);
  std::filesystem::remove(file_.path());
  expect_same(offloaded);
  make(2, chain(2)).save(file_.path());
  expect_same(offloaded);
}

TEST_F(FileModule, IsRefusedWhereverItWasCut) {
  const std::uintmax_t size = std::filesystem::file_size(file_.path());
  for (int i = 1; i < 40; ++i) {
    module_.save(file_.path());
    std::filesystem::resize_file(file_.path(), size * i / 40);
    EXPECT_THROW(load(file_.path(), options_on_file(2)), ArchiveError);
  }
}

} // namespace
} // namespace offload
