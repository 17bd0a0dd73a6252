// What wrap() does to the module that it is given, and under what its caller has set for itself.

#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DefaultDtype.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/jit/serialization/import.h>

#include <memory>
#include <stdexcept>
#include <utility>

#include "holdings.h"
#include "modules.h"
#include "temporary_file.h"

namespace offload::test {
namespace {

/// Weights of every kind that is adopted: alone, tied, parts of one storage, in a list, a constant; and state.
torch::jit::Module module_of_many_kinds() {
  return make(4, R"(
def forward(self, x, wrong: bool = False):
  self.calls += 1
  self.sums.add_(x.sum(0))
  x = torch.linear(torch.linear(x, self.w0), self.tied)
  x = torch.linear(torch.linear(x, self.upper), self.lower)
  assert not wrong, "wrong on purpose"
  return torch.linear(x, self.several[0]) + self.sums.sum() * float(self.calls)
)",
              at::kFloat, [](torch::jit::Module& module) {
                const at::Tensor both = at::randn({2 * kWidth, kWidth}).mul(1.0 / 23);
                module.register_parameter("tied", module.attr("w0").toTensor(), false);
                module.register_buffer("upper", both.narrow(0, 0, kWidth));
                module.register_buffer("lower", both.narrow(0, kWidth, kWidth));
                module.register_attribute("several", c10::ListType::ofTensors(),
                                          c10::List<at::Tensor>({at::randn({kWidth, kWidth})}));
                module.register_attribute("calls", c10::IntType::get(), 0);
                module.register_buffer("sums", at::zeros({kWidth}));
              });
}

struct Failure {
  const char* name;
  std::function<void(torch::jit::Module&, Options&)> arrange;
  const char* message;
};

std::vector<Failure> failures() {
  std::vector<Failure> all = {
      {"Example",
       [](torch::jit::Module&, Options& options) {
         options.example_calls = {{"forward", {rows(), false}}, {"forward", {rows(), true}}};
       },
       "wrong on purpose"},
      {"Budget", [](torch::jit::Module&, Options& options) { options.vram_budget = 4096; }, "is too small"},
      {"Meta",
       [](torch::jit::Module& module, Options&) {
         module.register_buffer("nowhere", at::empty({kWidth, kWidth}, at::TensorOptions(at::kMeta)));
       },
       "tensor nowhere is on the device meta"}};
  for (const int after : {0, 1, 3, 6}) {
    all.push_back({"Progress",
                   [after](torch::jit::Module&, Options& options) {
                     options.progress = [left = std::make_shared<int>(after)](std::uint64_t, std::uint64_t) {
                       if ((*left)-- == 0) {
                         throw std::runtime_error("no more progress");
                       }
                     };
                   },
                   "no more progress"});
  }
  return all;
}

TEST(Wrap, LeavesTheModuleAsItWasWhenItThrows) {
  for (const Failure& failure : failures()) {
    SCOPED_TRACE(failure.name);
    torch::jit::Module module = module_of_many_kinds();
    Options options = options_for(budget(2));
    failure.arrange(module, options);
    const torch::jit::Module as_it_was = module.deepcopy();
    torch::jit::Module same_type = module.clone();
    const at::Tensor held = module.attr("w2").toTensor();
    try {
      wrap(module, options);
      FAIL() << "nothing was thrown";
    } catch (const std::exception& error) {
      EXPECT_NE(std::string(error.what()).find(failure.message), std::string::npos) << error.what();
    }
    EXPECT_TRUE(module.attr("w2").toTensor().is_same(held));
    EXPECT_TRUE(module.attr("tied").toTensor().is_same(module.attr("w0").toTensor()));
    EXPECT_TRUE(module.attr("upper").toTensor().is_alias_of(module.attr("lower").toTensor()));
    for (const char* name : {"w0", "w1", "w3", "upper", "lower", "several", "little", "sums", "calls"}) {
      EXPECT_EQ(tools::first_difference(module.attr(name), as_it_was.attr(name)), "") << name;
    }
    const at::Tensor x = at::randn({3, kWidth});
    const at::Tensor expected = as_it_was.deepcopy().forward({x}).toTensor();
    EXPECT_TRUE(same_type.forward({x}).toTensor().equal(expected));
    EXPECT_TRUE(module.deepcopy().forward({x}).toTensor().equal(expected));
    if (std::string(failure.name) == "Meta") {
      continue; // nobody can take it
    }
    const TemporaryFile file;
    module.save(file.path());
    EXPECT_TRUE(torch::jit::load(file.path()).forward({x}).toTensor().equal(expected));
    Pair pair(module, options_for(budget(2))); // of copies
    pair.expect_same({rows()});
    Module taken = wrap(module, options_for(budget(2)));
    EXPECT_EQ(tools::first_difference(taken.attr("w1"), as_it_was.attr("w1")), "");
    EXPECT_TRUE(taken.forward({x.to(kDevice)}).toTensor().cpu().allclose(expected, 1e-3, 1e-3));
  }
}

/// Each is freed when it has been moved, also those of a module that was put back before.
TEST(Wrap, NeverHasMoreThanOneWeightTwice) {
  constexpr std::uint64_t kBytes = 64_MiB; // so much that the allocator gives it back to the system
  constexpr int kCount = 6;
  torch::jit::Module module("Model");
  std::string source = "def forward(self, x):\n";
  for (int i = 0; i < kCount; ++i) {
    const std::string name = "w" + std::to_string(i);
    module.register_parameter(name, at::zeros({kBytes / 4 / 4096, 4096}).add_(i), false);
    source += "  x = x + torch.linear(x, self." + name + ").sum()\n";
  }
  module.define(source + "  return x\n");
  Options options = options_for(kCount * kBytes + budget(0));
  const std::uint64_t before = Holdings::now().resident;
  for (const bool ends : {true, false}) {
    std::uint64_t most = 0;
    options.progress = [&, calls = 0](std::uint64_t, std::uint64_t) mutable {
      most = std::max(most, Holdings::now().resident);
      if (++calls == kCount && ends) {
        throw std::runtime_error("no more progress");
      }
    };
    std::optional<Module> taken;
    if (ends) {
      EXPECT_THROW(wrap(module, options), std::runtime_error);
    } else {
      taken = wrap(module, options);
    }
    EXPECT_LT(most, before + 2 * kBytes);
    for (int i = 0; i < kCount; ++i) {
      const std::string name = "w" + std::to_string(i);
      EXPECT_EQ((taken ? taken->attr(name) : module.attr(name)).toTensor().min().item<float>(), i);
      EXPECT_EQ((taken ? taken->attr(name) : module.attr(name)).toTensor().max().item<float>(), i);
    }
  }
}

/// What a thread may have set when it asks for something.
struct ModeOfThread {
  const char* name;
  std::function<std::shared_ptr<void>()> set;
};

class Autocast {
 public:
  Autocast() {
    at::autocast::increment_nesting();
    at::autocast::set_autocast_enabled(kDevice.type(), true);
  }
  ~Autocast() {
    at::autocast::set_autocast_enabled(kDevice.type(), false);
    at::autocast::decrement_nesting();
    at::autocast::clear_cache();
  }
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;
};

class DefaultDouble {
 public:
  DefaultDouble() { c10::set_default_dtype(caffe2::TypeMeta::Make<double>()); }
  ~DefaultDouble() { c10::set_default_dtype(caffe2::TypeMeta::Make<float>()); }
  DefaultDouble(const DefaultDouble&) = delete;
  DefaultDouble& operator=(const DefaultDouble&) = delete;
};

const std::vector<ModeOfThread>& modes() {
  static const std::vector<ModeOfThread> kModes = {{"none", [] { return nullptr; }},
                                                   {"inference", [] { return std::make_shared<c10::InferenceMode>(); }},
                                                   {"no grad", [] { return std::make_shared<at::NoGradGuard>(); }},
                                                   {"autocast", [] { return std::make_shared<Autocast>(); }},
                                                   {"default dtype", [] { return std::make_shared<DefaultDouble>(); }}};
  return kModes;
}

template <class Work>
auto under(const ModeOfThread& mode, Work work) {
  SCOPED_TRACE(mode.name);
  const std::shared_ptr<void> set = mode.set();
  return work();
}

/// The whole life of a module under one mode, and calls under each: as the reference, called under the same.
TEST(Modes, OfWhoeverAsksLeaveNothingBehind) {
  const torch::jit::Module module = module_of_many_kinds();
  const TemporaryFile file;
  module.save(file.path());
  const at::Tensor x = rows();
  for (const ModeOfThread& mode : modes()) {
    for (const bool loads : {true, false}) {
      for (const bool example : {true, false}) {
        SCOPED_TRACE(std::string(mode.name) + (loads ? ", load" : ", wrap") + (example ? ", example" : ""));
        Reference reference(module.deepcopy(), kDevice);
        const torch::jit::Module copy = module.deepcopy();
        Module offloaded = under(mode, [&] {
          Options options = options_for(budget(2));
          if (example) {
            options.example_calls = {{"forward", {x}}};
          }
          return loads ? load(file.path(), options) : wrap(copy, options);
        });
        const auto call = [&](const ModeOfThread& other) {
          under(other,
                [&] { EXPECT_EQ(tools::first_difference(offloaded.forward({x}), reference.run("forward", {x})), ""); });
        };
        call(mode); // the first one, which places, where there was no example
        for (const std::uint64_t weights : {3, 1}) {
          under(mode, [&] { leave_room(offloaded, weights); });
          for (const ModeOfThread& other : modes()) {
            call(other);
          }
        }
        for (const char* name : {"w0", "sums", "little"}) {
          const at::Tensor value = under(mode, [&] { return offloaded.attr(name).toTensor(); });
          EXPECT_FALSE(value.is_inference()) << name;
          value.add_(1); // outside InferenceMode
        }
      }
    }
  }
}

} // namespace
} // namespace offload::test
