#pragma once

#include <atomic>
#include <map>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <unordered_map>

#include <offload/core/promises.h>
#include <offload/device/lane_gate.h>
#include <offload/graph/program.h>
#include <offload/module.h>
#include <offload/plan/device_budget.h>
#include <offload/plan/host_layout.h>
#include <offload/plan/planner.h>
#include <offload/runtime/activations.h>
#include <offload/runtime/displaced.h>
#include <offload/runtime/engine.h>
#include <offload/runtime/executor.h>
#include <offload/runtime/placed_module.h>
#include <offload/runtime/state.h>

namespace offload {

/// A module that has been taken in: what graph/ found, where plan/ puts it, and the engine that moves it.
///
/// The first call of a module that has no example calls, and every example call, is a *measuring call*: it runs alone,
/// on a GPU with little more than the smallest ring and the rest of the budget for activations, and shows the real
/// order of leases, the work between them, and what activations take. Then the plan is settled. So is a call for which
/// the plan leaves no room: it has been stopped, what it wrote is put back, and it is made again. All other calls show
/// in passing what they take.
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

  /// Whether others may hold a module of the same type, and run its methods: then constants stay in those.
  enum class Owner { sole, shared };

  using Progress = decltype(Options::progress);

  Impl(torch::jit::Module module, const Options& options, const std::optional<MachineProfile>& machine, Purpose purpose,
       Owner owner);
  ~Impl();

  c10::IValue run_method(const std::string& name, std::vector<c10::IValue> inputs, const Kwargs& kwargs);
  c10::IValue attr(const std::string& name) const;
  const c10::FunctionSchema& schema(const std::string& method) const;
  Placement placement() const;
  Stats stats() const;
  void set_vram_budget(std::uint64_t bytes);
  c10::Device device() const { return device_; }

  /// For tests: from the n-th allocation of the next call on, as if the first lane could have no more.
  void refuse_from(std::uint64_t n) { engine_->lanes().refuse_from(0, n); }

 private:
  void require_no_call_around(const char* wanted) const;
  Made make_call(int lane, const Request& request, Lanes::Overflow overflow, std::vector<LeasedStep>* trace);
  std::optional<c10::IValue> call_in_turn(const Request& request, std::uint64_t& too_little);
  std::optional<c10::IValue> call_exclusive(const Request& request, std::uint64_t too_little);
  void record_memory(const Request& request, const CallMemory& memory, bool ended);
  c10::IValue measure(const Request& request);
  void measure_example(const ExampleCall& call);
  void require_minimum(std::uint64_t vram) const;
  [[noreturn]] void refuse(const Request& request, const Made& made);
  void refuse_again(const Request& request, std::uint64_t too_little);

  void drop_engine();
  void adopt_weights(Owner owner, const Progress& progress, Displaced& displaced);
  void list_weights(const Options& options);
  void choose_budget(const Options& options);
  std::string describe_budget(std::uint64_t vram) const;
  std::uint64_t planned_bytes(const Residency& residency) const;
  std::uint64_t promised_bytes(const Residency& residency) const;
  DeviceBudget device_budget() const;
  std::uint64_t room() const;
  Plan best_plan() const;
  enum class Ring { ample, least };
  Residency residency_to_measure(Ring ring) const;
  void replan();
  void record_peak();
  Placement describe() const;
  Pass pass_of(const std::vector<LeasedStep>& steps) const { return make_pass(weights_, steps, machine_); }
  Pass planned_pass() const;
  std::vector<LeasedStep> static_steps(const std::string& name) const;
  std::shared_ptr<const Sequence> sequence_of(const std::string& name, std::size_t shape);
  std::size_t count() const { return weights_->size(); }
  std::uint64_t bytes(WeightId weight) const { return (*weights_)[weight].bytes; }
  Source::Kind kind(WeightId weight) const { return (*weights_)[weight].source.kind; }
  void record_sequence(const std::string& name, std::size_t shape, std::shared_ptr<const Sequence> sequence);

  c10::Device device_;
  bool maps_file_;    // see Options::map_file
  bool may_overflow_; // a measuring call may put activations that find no room into page-locked host memory
  Program program_;
  int lanes_ = 1;
  MachineProfile machine_;
  WeightTablePtr weights_;
  HostLayout host_;
  DeviceMemory fixed_memory_;      // what stays
  std::uint64_t ranges_bytes_ = 0; // of it, those that are ranges of bytes
  std::uint64_t fixed_ = 0;
  std::shared_ptr<const File> file_; // that the module's weights lie in; null when all are in memory
  Promise host_promise_{kHost};
  Promise device_promise_;
  std::unique_ptr<Engine> engine_;

  std::shared_ptr<LaneGate> gate_;
  std::unique_ptr<PlacedModule> placed_; // null where nothing was adopted
  std::unique_ptr<Executor> executor_;

  mutable std::mutex mutex_; // what follows, which only somebody who is alone changes, but for what calls note
  std::uint64_t vram_ = 0;
  std::uint64_t outside_ = 0;         // of budgets, when this was planned
  std::optional<std::uint64_t> free_; // of device memory, when the budget was chosen by it; none where one was given
  std::string planned_method_;
  std::map<std::string, std::vector<LeasedStep>> measured_;          // by method
  std::map<std::string, std::shared_ptr<const Sequence>> sequences_; // of the last call of each method
  std::unordered_map<std::size_t, std::shared_ptr<const Sequence>> sequences_by_shape_;
  Activations activations_;
  std::uint64_t state_ = 0;       // that calls have put into the module, beside what it replaces
  std::uint64_t planned_for_ = 0; // what the largest call took, when the plan was settled
  std::unordered_map<std::size_t, std::uint64_t> refused_; // by shape of call: the budget that it takes
  Readiness readiness_ = Readiness::unknown;
  Plan plan_;
  std::uint64_t calls_ = 0;
  std::uint64_t repeated_ = 0;
  std::uint64_t peak_ = 0;
  mutable std::shared_ptr<const Placement> placement_; // null when something has changed since
};

} // namespace offload
