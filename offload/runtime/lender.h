#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include <offload/io/file.h>
#include <offload/plan/pass.h>
#include <offload/ring/streamer.h>
#include <ops/lease.h>

namespace offload {

/// By weight: the placeholders that a module holds for it, one for each geometry.
using Placeholders = std::vector<std::vector<at::Tensor>>;

/// Lends weights to the operators of calls: resident ones from their place on the device, streamed ones through the
/// streamer of the call. Between attach() and detach() calls may run; attach and detach come when none does.
class WeightLender final : public Lender {
 public:
  WeightLender(c10::Device device, WeightTablePtr weights) : device_(device), weights_(std::move(weights)) {}

  /// Bytes of a weight, in memory that stays for as long as somebody has them.
  using Bytes = std::shared_ptr<std::byte>;

  /// What weights are lent from.
  struct Placing {
    WeightId first_in_ring = 0;            ///< of these weights, there
    std::vector<Bytes> resident;           ///< by weight, of those that are on the device; null for the others
    std::function<Bytes(WeightId)> locate; ///< waits until a weight is in host memory, as the device has it there
    std::shared_ptr<const File> mapped;    ///< of weights that have no place in the ring
  };

  /// Leases for `known`, where they are resident, are made once and for all.
  void attach(Placing placing, const Placeholders& known);
  void detach();

  std::vector<LeasedWeight> lease(c10::ArrayRef<at::Tensor> placeholders, const ProductSize& size) override;
  at::Tensor lease_rows(const at::Tensor& placeholder, std::uint64_t rows) override;

  /// Bytes of rows that were read where they lie in host memory.
  std::uint64_t bytes_in_place() const { return bytes_in_place_; }

  /// Bytes of streamed weights that were leased where the page cache has them.
  std::uint64_t bytes_in_cache() const { return bytes_in_cache_; }

  /// The weight on the device as `placeholder` describes it; the weight is resident. It keeps its memory, also after
  /// detach().
  at::Tensor resident_tensor(WeightId weight, const at::Tensor& placeholder) const;

  /// Marks the current thread as running a call on `lane`, for which `streamer` brings weights. Leases keep it, and
  /// whatever it owns. With `trace`, the steps of the call are appended to it. With `clock`, a lap ends where it wants
  /// what streams, and another begins when that is there. The call goes no further than its next lease when `must_stop`
  /// says so.
  class Scope {
   public:
    Scope(WeightLender& lender, std::shared_ptr<Streamer> streamer, int lane, std::vector<LeasedStep>* trace,
          LaneClock* clock, std::function<bool()> must_stop)
        : lender_(lender),
          streamer_(std::move(streamer)),
          lane_(lane),
          trace_(trace),
          clock_(clock),
          must_stop_(std::move(must_stop)) {
      current = this;
    }
    ~Scope() { current = outer_; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

    /// Why a weight could not come; null when all came. The interpreter gives errors of operators a type and a text of
    /// its own.
    const std::exception_ptr& failure() const { return failure_; }

    /// Throws ArchiveError when the call has read a mapping of a file that has changed since.
    void check_mapping() const;

   private:
    friend class WeightLender;
    static thread_local Scope* current;
    WeightLender& lender_;
    const std::shared_ptr<Streamer> streamer_;
    int lane_;
    std::vector<LeasedStep>* trace_;
    LaneClock* const clock_;
    const std::function<bool()> must_stop_;
    Scope* outer_ = current;
    mutable std::exception_ptr failure_;
    mutable bool reads_mapping_ = false;
  };

 private:
  class StreamedLease;
  const Scope& current_scope(const at::Tensor& placeholder) const;
  c10::Storage storage_of(WeightId weight, Bytes bytes) const;

  const c10::Device device_;
  const WeightTablePtr weights_;
  Placing placing_;
  std::atomic<std::uint64_t> bytes_in_place_ = 0;
  std::atomic<std::uint64_t> bytes_in_cache_ = 0;
  std::vector<std::vector<at::Tensor>> resident_tensors_; // by weight: one for each geometry in the module
};

} // namespace offload
