#pragma once

#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>

#include <offload/core/promises.h>
#include <offload/device/lane_gate.h>
#include <offload/module.h>
#include <offload/runtime/adopt.h>
#include <offload/runtime/model.h>
#include <offload/runtime/observations.h>
#include <offload/runtime/sequences.h>

namespace offload {

/// A module that has been adopted: what graph/ found, where plan/ puts it, and the engine that moves it.
///
/// The first call of a module that has no example calls, and every example call, is a *measuring call*: it runs alone,
/// on a GPU with little more than the smallest ring and the rest of the budget for activations, and shows the real
/// order of leases, the work between them, and what activations take. Then the module is replanned. A call for which
/// the plan leaves no room is one as well: it has been stopped, what it wrote is put back, and it is made again. All
/// other calls show in passing what they take.
class Module::Impl {
 public:
  /// What is made of the module.
  enum class Purpose {
    run,
    plan, ///< nothing is moved or allocated; the Impl answers placement() only
  };

  /// What is known for calls.
  enum class Readiness {
    unknown,  ///< the next call is a measuring call
    measured, ///< and planned anew with the next one
    placed,
  };

  Impl(const torch::jit::Module& module, const Options& options, const std::optional<MachineProfile>& machine,
       Purpose purpose, Owner owner);
  ~Impl();

  c10::IValue run_method(const std::string& name, std::vector<c10::IValue> inputs, const Kwargs& kwargs);
  c10::IValue attr(const std::string& name) const;
  const c10::FunctionSchema& schema(const std::string& method) const;
  Placement placement() const;
  Stats stats() const;
  void set_vram_budget(std::uint64_t bytes);
  c10::Device device() const { return model_.device; }

  /// For tests: from the n-th allocation of the next call on, as if the first lane could have no more.
  void refuse_from(std::uint64_t n) { engine().lanes().refuse_from(0, n); }

 private:
  void require_no_call_around(const char* wanted) const;
  Made make_call(int lane, const Request& request, Lanes::Overflow overflow, std::vector<LeasedStep>* trace);
  std::optional<c10::IValue> call_in_turn(const Request& request, std::uint64_t& exhausted_room);
  std::optional<c10::IValue> call_exclusive(const Request& request, std::uint64_t exhausted_room);
  void record_memory(const Request& request, const CallMemory& memory, bool ended);
  c10::IValue measure(const Request& request);
  void measure_example(const ExampleCall& call);
  void require_minimum(std::uint64_t vram) const;
  [[noreturn]] void refuse(const Request& request, const Made& made);
  void refuse_again(const Request& request, std::uint64_t exhausted_room);

  void choose_budget(const Options& options);
  std::string describe_budget(std::uint64_t vram) const;
  std::uint64_t planned_bytes(const Residency& residency) const;
  std::uint64_t promised_bytes(const Residency& residency) const;
  DeviceBudget device_budget() const { return observed_.divide(given_.vram); }
  std::uint64_t room() const;
  enum class Ring { ample, least };
  Residency residency_to_measure(Ring ring) const;
  void replan();
  void record_peak();
  Placement describe() const;
  Engine& engine() const { return *adopted_->engine; }

  struct GivenBudget {
    std::uint64_t vram = 0;
    std::optional<std::uint64_t> free; // device memory, when the budget was chosen by it; none where it was given
  };
  struct Planned {
    Plan plan;
    std::uint64_t largest_call = 0; // by what was known then
    std::uint64_t outside = 0;      // of budgets
  };
  struct Counts {
    std::uint64_t calls = 0;
    std::uint64_t repeated = 0;
    std::uint64_t peak = 0; // bytes on the device, since the budget was set
  };

  Promise host_promise_{kHost};
  Model model_;
  const bool may_overflow_; // a measuring call may put activations that find no room into page-locked host memory
  Promise device_promise_;
  std::shared_ptr<LaneGate> gate_;
  std::unique_ptr<Adopted> adopted_; // null where nothing was adopted
  Sequences sequences_;

  mutable std::mutex mutex_; // what follows, which only somebody who is alone changes, but for what calls note
  GivenBudget given_;
  Observations observed_;
  Planned planned_;
  Readiness readiness_ = Readiness::unknown;
  std::unordered_map<std::size_t, std::uint64_t> refused_; // by shape of call: the budget that it takes
  Counts counts_;
  mutable std::shared_ptr<const Placement> placement_; // null when something has changed since
};

} // namespace offload
