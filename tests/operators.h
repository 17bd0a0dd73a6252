#pragma once

#include <torch/csrc/jit/frontend/resolver.h>
#include <torch/csrc/jit/frontend/sugared_value.h>

#include <atomic>
#include <future>
#include <memory>
#include <string>
#include <utility>

namespace offload::test {

/// Lets the source of a module name the operators of a library that a test has registered.
class OperatorsOf : public torch::jit::NativeResolver {
 public:
  explicit OperatorsOf(std::string library) : library_(std::move(library)) {}

  std::shared_ptr<torch::jit::SugaredValue> resolveValue(const std::string& name, torch::jit::GraphFunction& method,
                                                         const torch::jit::SourceRange& where) override {
    return name == library_ ? std::make_shared<torch::jit::BuiltinModule>(name)
                            : NativeResolver::resolveValue(name, method, where);
  }

 private:
  const std::string library_;
};

/// Keeps a call inside its model for as long as a test wants.
class Latch {
 public:
  void hold() {
    opened_ = std::promise<void>();
    reached_ = std::promise<void>();
    held_ = true;
  }
  void pass() {
    if (held_.exchange(false)) {
      reached_.set_value();
      opened_.get_future().wait();
    }
  }
  void await_reached() { reached_.get_future().wait(); }
  void open() { opened_.set_value(); }

 private:
  std::atomic<bool> held_ = false;
  std::promise<void> opened_;
  std::promise<void> reached_;
};

} // namespace offload::test
