#include <algorithm>
#include <list>
#include <memory>
#include <utility>
#include <vector>

#include <offload/core/mutex.h>
#include <offload/error.h>
#include <offload/feed/stores.h>
#include <offload/feed/transfer_fillers.h>
#include <offload/feed/transfers.h>

namespace offload {

namespace {

/// As LibTorch aligns tensors, and what it writes in archives.
constexpr std::uint64_t kTensorAlignment = 64;

/// Batches are filled side by side, in any order, but for those that write the same place: what was prefetched and is
/// not wanted any more may still be on its way there, and is awaited first.
class InPlaceStore final : public Store {
 public:
  InPlaceStore(Link& link, HostPlaces host, std::byte* ring, int threads)
      : link_(link),
        host_(std::move(host)),
        ring_(ring),
        outside_(host_.size()),
        cutter_(host_),
        fillers_(threads, [this](Transfer& transfer) { note_filled(transfer); }) {}

  ~InPlaceStore() override { stop(); }

  void issue(Batch batch) override {
    std::exception_ptr failure;
    try {
      count_mapped(batch);
      if (!batch.fetches.empty()) {
        auto filling = cut(batch);
        const Lock lock(mutex_);
        fillings_.splice(fillings_.end(), filling);
        open_all();
        return;
      }
    } catch (const std::exception&) {
      failure = std::current_exception();
    }
    const Lock lock(mutex_);
    end(batch, failure);
  }

  void drain() override {
    const Lock lock(mutex_);
    drained_.wait(mutex_, [&]() OFFLOAD_REQUIRES(mutex_) { return fillings_.empty(); });
  }

  void stop() override {
    drain();
    fillers_.stop();
  }

  const std::byte* outside_ring(WeightId weight) const override { return outside_[weight]; }

 private:
  /// A batch until all of it is in its places.
  struct Filling {
    std::shared_ptr<Job> job;
    TransferList transfers; // until they are opened
    std::size_t unfilled = 0;
    std::exception_ptr failure;
  };
  using Fillings = std::list<Filling>;

  /// Takes what is read where it is mapped out of `batch`. Throws ArchiveError when a file has changed.
  void count_mapped(Batch& batch) {
    const File* checked = nullptr;
    for (const Fetch& fetch : batch.fetches) {
      const HostPlace& src = host_[fetch.weight];
      if (src.is_mapped() && src.source->mapped.get() != checked) {
        checked = src.source->mapped.get();
        checked->check_unchanged();
      }
    }
    const auto is_mapped = [&](const Fetch& fetch) {
      const HostPlace& src = host_[fetch.weight];
      const bool aligned = src.is_mapped() && src.offset % kTensorAlignment == 0;
      const std::byte* address = aligned ? src.source->mapped->mapped_if_cached(src.offset, src.bytes) : nullptr;
      outside_[fetch.weight] = address;
      if (address) {
        const Lock lock(mutex_);
        link_.count(fetch.bytes);
      }
      return address != nullptr;
    };
    std::erase_if(batch.fetches, is_mapped);
  }

  /// Leaves `batch` as it is when it throws.
  Fillings cut(Batch& batch) {
    Fillings one(1);
    Filling& filling = one.front();
    cutter_.begin(std::move(batch));
    try {
      while (cutter_.has_more()) {
        std::shared_ptr<Transfer>& transfer = filling.transfers.emplace_back();
        transfer = cutter_.cut(ring_ + cutter_.next_place(), ~std::uint64_t{0});
      }
    } catch (...) {
      batch = std::move(cutter_.give_up()->batch);
      throw;
    }
    filling.job = filling.transfers.front()->job;
    filling.unfilled = filling.transfers.size();
    return one;
  }

  static bool overlap(const Filling& a, const Filling& b) {
    const auto& others = b.job->batch.fetches;
    return std::any_of(a.job->batch.fetches.begin(), a.job->batch.fetches.end(), [&](const Fetch& fetch) {
      return std::any_of(others.begin(), others.end(), [&](const Fetch& other) {
        return fetch.place < other.place + other.bytes && other.place < fetch.place + fetch.bytes;
      });
    });
  }

  /// Opens what no earlier one keeps from its places: a host has read a place when it is given to others.
  void open_all() OFFLOAD_REQUIRES(mutex_) {
    for (auto filling = fillings_.begin(); filling != fillings_.end(); ++filling) {
      const auto keeps_it = [&](const Filling& earlier) { return overlap(earlier, *filling); };
      if (!filling->transfers.empty() && std::none_of(fillings_.begin(), filling, keeps_it)) {
        mark_begin(link_, filling->job->batch);
        fillers_.open(filling->transfers);
      }
    }
  }

  void note_filled(Transfer& transfer) {
    const Lock lock(mutex_);
    const auto filling = std::find_if(fillings_.begin(), fillings_.end(),
                                      [&](const Filling& candidate) { return candidate.job == transfer.job; });
    if (transfer.failure) {
      filling->failure = transfer.failure;
    }
    if (--filling->unfilled > 0) {
      return;
    }
    end(transfer.job->batch, filling->failure);
    fillings_.erase(filling);
    open_all();
    drained_.notify_all();
  }

  void end(const Batch& batch, const std::exception_ptr& failure) OFFLOAD_REQUIRES(mutex_) {
    try {
      if (failure) {
        std::rethrow_exception(failure);
      }
      for (const Fetch& fetch : batch.fetches) {
        link_.count(fetch.bytes);
      }
    } catch (const std::exception& error) {
      fail(link_, batch, error);
    }
    finish(link_, batch);
  }

  Link& link_; // one at a time: with the mutex
  const HostPlaces host_;
  std::byte* const ring_;
  std::vector<const std::byte*> outside_; // by weight

  Mutex mutex_;
  Condition drained_;
  Fillings fillings_ OFFLOAD_GUARDED_BY(mutex_); // in the order in which they came

  TransferCutter cutter_;
  TransferFillers fillers_;
};

} // namespace

std::unique_ptr<Store> make_in_place_store(Link& link, HostPlaces host, std::byte* ring, int threads) {
  return std::make_unique<InPlaceStore>(link, std::move(host), ring, threads);
}

} // namespace offload
