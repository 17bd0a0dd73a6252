#include <offload/module.h>

#include <condition_variable>
#include <cstddef>
#include <filesystem>
#include <new>
#include <utility>

#include <offload/load/archive.h>
#include <offload/runtime/own_session.h>
#include <offload/runtime/pooled_session.h>
#include <offload/tensor/plain_modes.h>

namespace offload {

/// What the handles of a module share. It ends with the last of them, when no member is at work.
class Module::Shared {
 public:
  explicit Shared(std::shared_ptr<Session> of_module) : session(std::move(of_module)) {}
  ~Shared() {
    std::unique_lock lock(mutex);
    left.wait(lock, [this] { return inside == 0; });
  }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;

  const std::shared_ptr<Session> session;
  std::mutex mutex;
  std::condition_variable left;
  int inside = 0; // members at work
};

/// A member at work: its module is there, whatever becomes of the handle. It is no owner, so that modules end on
/// threads that have handles, and never on one of their own.
class Module::Access {
 public:
  explicit Access(const Module& handle) {
    if (!handle.process_.is_this()) {
      throw Error("the module belongs to a process that this one was forked from: load it in this one");
    }
    const auto lock = handle.lock();
    shared_ = handle.shared_.get();
    if (!shared_) {
      throw Error("this offload::Module was moved from: assign another to it before it is called");
    }
    const std::lock_guard entering(shared_->mutex);
    ++shared_->inside;
  }
  ~Access() {
    const std::lock_guard leaving(shared_->mutex);
    --shared_->inside;
    shared_->left.notify_all();
  }
  Access(const Access&) = delete;
  Access& operator=(const Access&) = delete;

  Session* operator->() const { return shared_->session.get(); }

 private:
  Shared* shared_;
};

/// In a child of fork() a thread that is not there may have locked it, and nobody else uses the handle.
std::unique_lock<std::mutex> Module::lock() const {
  return process_.is_this() ? std::unique_lock(mutex_) : std::unique_lock(mutex_, std::defer_lock);
}

Module::Module(std::shared_ptr<Session> session) : shared_(std::make_shared<Shared>(std::move(session))) {}

Module::Module(const Module& other) : process_(other.process_) {
  const auto guard = other.lock();
  shared_ = other.shared_;
}

Module::Module(Module&& other) noexcept : process_(other.process_) {
  const auto guard = other.lock();
  shared_ = std::move(other.shared_);
}

Module& Module::operator=(Module other) noexcept {
  const auto guard = lock();
  if (!process_.is_this()) {
    std::swap(process_, other.process_);
  }
  shared_.swap(other.shared_);
  return *this;
}

/// In a child of fork() the module stays as it is: to end it would take threads, locks and a device that are not there.
Module::~Module() {
  if (!process_.is_this()) {
    alignas(std::shared_ptr<Shared>) std::byte kept[sizeof(std::shared_ptr<Shared>)];
    new (kept) std::shared_ptr<Shared>(std::move(shared_)); // which never ends
    return;
  }
  std::shared_ptr<Shared> last;
  const auto guard = lock();
  last = std::move(shared_); // it ends without the lock, since progress that is reported meanwhile may ask this handle
}

c10::IValue Module::forward(std::vector<c10::IValue> inputs, const Kwargs& kwargs) {
  return Access(*this)->run_method("forward", std::move(inputs), kwargs);
}

c10::IValue Module::run_method(const std::string& name, std::vector<c10::IValue> inputs, const Kwargs& kwargs) {
  return Access(*this)->run_method(name, std::move(inputs), kwargs);
}

c10::IValue Module::attr(const std::string& name) const { return Access(*this)->attr(name); }
const c10::FunctionSchema& Module::schema(const std::string& method) const { return Access(*this)->schema(method); }
c10::Device Module::device() const { return Access(*this)->device(); }
Placement Module::placement() const { return Access(*this)->placement(); }
Timeline Module::predicted_timeline() const { return Access(*this)->predicted_timeline(); }
Stats Module::stats() const { return Access(*this)->stats(); }
Report Module::report() const { return Access(*this)->report(); }
std::optional<Timeline> Module::recorded_timeline() const { return Access(*this)->recorded_timeline(); }
void Module::set_vram_budget(std::uint64_t bytes) { Access(*this)->set_vram_budget(bytes); }
void Module::release() { Access(*this)->release(); }

namespace {

std::shared_ptr<Session> make_session(const torch::jit::Module& module, const Options& options, Owner owner,
                                      const std::string& file) {
  if (options.pool) {
    return std::make_shared<PooledSession>(module, options, owner, file);
  }
  return std::make_shared<OwnSession>(module, options, std::nullopt, OwnSession::Purpose::run, owner);
}

} // namespace

// NOLINTNEXTLINE(performance-unnecessary-value-param): a caller that moves it here keeps no handle to placeholders
Module wrap(torch::jit::Module module, const Options& options) {
  return Module(make_session(module, options, Owner::shared, ""));
}

Module load(const std::string& path, const Options& options) {
  torch::jit::Module module = [&] {
    const PlainModes plain;
    return read_archive(path, Weights::on_file);
  }();
  return Module(make_session(module, options, Owner::sole, std::filesystem::path(path).filename().string()));
}

} // namespace offload
