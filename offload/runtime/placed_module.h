#pragma once

#include <ATen/core/ivalue.h>

#include <functional>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <offload/graph/program.h>
#include <offload/runtime/engine.h>

namespace offload {

/// A program as its present placing wants it: what is leased stands there as a placeholder, what is resident as it is,
/// and methods lease only the former.
///
/// install(), alter() and clear() come when no call runs; leases_all() in calls, or when none runs; the others may be
/// called from any thread at any time.
class PlacedModule {
 public:
  /// `placeholders`: those that the holders of the program have. Model and engine outlive this.
  PlacedModule(Model& model, Engine& engine, Placeholders placeholders)
      : model_(model), engine_(engine), placeholders_(std::move(placeholders)) {}

  /// What methods lease: a call that leases all shows all of its steps.
  enum class Leased { streamed, all };

  /// Places weights, and makes the program fit. What was placed is gone when it throws: the caller has looked whether
  /// the file has changed.
  void install(const Residency& residency, Leased leased);

  /// Has `change` alter what is placed, and makes the program fit. Where that throws, nothing is placed.
  void alter(const std::function<void(Engine& engine, const Placeholders& known)>& change, Leased leased);

  /// True when calls lease all that they read.
  bool leases_all() const { return leases_all_; }

  /// Nothing is placed any more.
  void clear();

  /// An attribute by its qualified name, on the host, in memory of its own. Throws InputError when there is none.
  c10::IValue attr(const std::string& name) const;

  /// The values of a placeholder, in memory of their own on the host.
  at::Tensor host_copy(const at::Tensor& placeholder) const;

 private:
  void restore_placeholders();
  void bind(Leased leased);
  at::Tensor placeholder_of(const at::Tensor& tensor) const;

  Model& model_;
  Engine& engine_;
  const Placeholders placeholders_;
  bool leases_all_ = true;
  mutable std::mutex objects_mutex_; // the objects of the program, and what follows
  std::unordered_map<const void*, std::pair<at::Tensor, at::Tensor>> resident_; // with what each stands in place of
  mutable std::shared_mutex placing_mutex_; // shared by who reads what is resident; of who exchanges it alone
};

} // namespace offload
