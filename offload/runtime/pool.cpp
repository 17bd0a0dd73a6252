#include <offload/pool.h>

#include <cstddef>
#include <new>
#include <utility>

#include <offload/error.h>
#include <offload/runtime/pool_manager.h>

namespace offload {

Pool::Pool(const PoolOptions& options) : manager_(std::make_shared<PoolManager>(options)) {}

/// In a child of fork() the pool stays as it is, as modules do.
Pool::~Pool() {
  if (!process_.is_this()) {
    alignas(std::shared_ptr<PoolManager>) std::byte kept[sizeof(std::shared_ptr<PoolManager>)];
    new (kept) std::shared_ptr<PoolManager>(std::move(manager_)); // which never ends
  }
}

const std::shared_ptr<PoolManager>& Pool::manager() const {
  if (!process_.is_this()) {
    throw Error("the pool belongs to a process that this one was forked from: make one in this one");
  }
  return manager_;
}

c10::Device Pool::device() const { return manager()->device(); }
std::uint64_t Pool::vram_budget() const { return manager()->vram_budget(); }
void Pool::set_vram_budget(std::uint64_t bytes) { manager()->set_vram_budget(bytes); }
std::vector<PoolEntry> Pool::entries() const { return manager()->entries(); }
Stats Pool::stats() const { return manager()->stats(); }

} // namespace offload
