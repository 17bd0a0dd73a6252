#include <offload/runtime/call_scope.h>

#include <atomic>

#include <offload/device/torch_versions.h>

namespace offload {

struct CallScope::Info final : c10::DebugInfoBase {
  Info(const void* called, const Info* around) : module(called), outer(around) {}
  static const Info* current() { return dynamic_cast<const Info*>(c10::ThreadLocalDebugInfo::get(kCallScopeSlot)); }

  const void* const module;
  const Info* const outer; // PyTorch keeps it for as long as this
  std::atomic<bool> ended = false;
};

CallScope::CallScope(const void* module)
    : info_(std::make_shared<Info>(module, Info::current())), guard_(kCallScopeSlot, info_) {}

CallScope::~CallScope() { info_->ended = true; } // a thread that was started in the call may still have it

bool CallScope::is_within(const void* module) {
  for (const Info* info = Info::current(); info; info = info->outer) {
    if (info->module == module && !info->ended) {
      return true;
    }
  }
  return false;
}

} // namespace offload
