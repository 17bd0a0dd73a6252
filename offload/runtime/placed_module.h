#pragma once

#include <ATen/core/ivalue.h>

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
/// install() and clear() come when no call runs; the others may be called from any thread at any time.
class PlacedModule {
 public:
  /// `placeholders`: those that the holders of the program have. Model and engine outlive this.
  PlacedModule(Model& model, Engine& engine, Placeholders placeholders)
      : model_(model), engine_(engine), placeholders_(std::move(placeholders)) {}

  enum class Leased { streamed, all };

  /// Places weights, and makes the program fit. What was placed is gone when it throws: the caller has looked whether
  /// the file has changed.
  void install(const Residency& residency, Leased leased);

  /// The same with what has been brought already.
  void install(Engine::Slab slab);

  /// Nothing is placed any more.
  void clear();

  /// An attribute by its qualified name, on the host, in memory of its own. Throws InputError when there is none.
  c10::IValue attr(const std::string& name) const;

  /// The values of a placeholder, in memory of their own on the host.
  at::Tensor host_copy(const at::Tensor& placeholder) const;

 private:
  void restore_placeholders();
  void bind(const Residency& residency, Leased leased);
  at::Tensor placeholder_of(const at::Tensor& tensor) const;

  Model& model_;
  Engine& engine_;
  const Placeholders placeholders_;
  mutable std::mutex objects_mutex_; // the objects of the program, and what follows
  std::unordered_map<const void*, std::pair<at::Tensor, at::Tensor>> resident_; // with what each stands in place of
  mutable std::shared_mutex placing_mutex_; // shared by who reads what is resident; of who exchanges it alone
};

} // namespace offload
