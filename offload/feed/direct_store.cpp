#include <offload/feed/copies.h>
#include <offload/feed/stores.h>

namespace offload {

namespace {

class DirectStore final : public Store {
 public:
  DirectStore(Link& link, HostPlaces host, std::byte* ring) : link_(link), host_(std::move(host)), ring_(ring) {}

  void issue(Batch batch) override {
    try {
      wait_for_readers(link_, batch);
      mark_begin(link_, batch);
      for (const Copy& copy : merge_neighbours(batch, host_)) {
        copy.src.await_bytes(copy.bytes);
        link_.copy(ring_ + copy.place, copy.src.memory, copy.bytes);
      }
    } catch (const std::exception& error) {
      fail(link_, batch, error);
    }
    finish(link_, batch);
  }

  void drain() override {}

 private:
  Link& link_;
  const HostPlaces host_;
  std::byte* const ring_;
};

} // namespace

std::unique_ptr<Store> make_direct_store(Link& link, HostPlaces host, std::byte* ring) {
  return std::make_unique<DirectStore>(link, std::move(host), ring);
}

} // namespace offload
