#pragma once

#include <c10/core/DispatchKeySet.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

namespace offload {

/// While it lives, this thread has set nothing for itself in PyTorch: no InferenceMode, no NoGrad, no autocast. What is
/// made of a module, or for it, outlives what was set when it was asked for; only calls run as their callers have it.
class PlainModes {
 private:
  const c10::InferenceMode no_inference_mode_{false}; // turns gradients on as well
  const c10::impl::ExcludeDispatchKeyGuard no_autocast_{c10::autocast_dispatch_keyset};
};

} // namespace offload
