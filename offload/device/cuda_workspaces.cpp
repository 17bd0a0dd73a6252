#include <offload/device/cuda_workspaces.h>

#include <c10/cuda/CUDAFunctions.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>

#include <offload/device/call_thread.h>

namespace offload {

namespace {

using Map = at::cuda::WorkspaceMapWithMutex;

Map& map_of(std::size_t kind) {
  return kind == 0 ? at::cuda::cublas_handle_stream_to_workspace() : at::cuda::cublaslt_handle_stream_to_workspace();
}

/// For any handle.
std::ptrdiff_t count_for(cudaStream_t stream) {
  Map& map = map_of(0);
  const std::unique_lock lock(map.mutex);
  return std::count_if(map.map.begin(), map.map.end(),
                       [&](const auto& entry) { return std::get<1>(entry.first) == stream; });
}

/// The handle that this thread has for the current device, as far as it is known; asking PyTorch would make one.
void*& handle_of_thread() {
  thread_local std::map<c10::DeviceIndex, void*> handles;
  return handles[c10::cuda::current_device()];
}

/// A thread that is new has no context yet, and no handle is made without one.
void prepare_thread() { static_cast<void>(cudaSetDevice(c10::cuda::current_device())); }

} // namespace

void CudaWorkspaces::find_handle(cudaStream_t stream) {
  void*& handle = handle_of_thread();
  if (handle || CallThread::is_current()) {
    return;
  }
  const std::ptrdiff_t before = count_for(stream);
  if (before == 0) {
    return; // whether it has one or not, it has not worked there
  }
  prepare_thread();
  handle = blas_handle();
  if (count_for(stream) > before) {
    const std::unique_lock lock(map_of(0).mutex);
    map_of(0).map.erase({handle, stream});
  }
}

void CudaWorkspaces::bring(cudaStream_t stream, bool wanted, const LaneMemory& memory) {
  void*& handle = handle_of_thread();
  if (!handle && wanted) {
    drop(); // those of another thread's handle, before there are others
    prepare_thread();
    handle = at::cuda::getCurrentCUDABlasHandle(); // and with it a workspace, where this handle has none yet
  }
  if (!handle) {
    return;
  }
  if (handle_ != handle) {
    drop();
    handle_ = handle;
  }
  for (std::size_t kind = 0; kind < kKinds; ++kind) {
    Map& map = map_of(kind);
    {
      const std::unique_lock lock(map.mutex);
      const auto entry = map.map.try_emplace({handle_, stream}).first;
      if (memory.contains(workspace_address(entry->second))) {
        continue; // it was made with the handle, just now
      }
      callers_[kind] = std::exchange(entry->second, std::exchange(ours_[kind], {}));
      if (workspace_address(entry->second)) {
        continue;
      }
      map.map.erase(entry);
    }
    if (wanted) {
      kind == 0 ? static_cast<void>(at::cuda::getCurrentCUDABlasHandle())
                : static_cast<void>(at::cuda::getCUDABlasLtWorkspace());
    }
  }
}

void CudaWorkspaces::take_back(cudaStream_t stream, const LaneMemory& memory) {
  const auto is_ours = [&](const auto& entry) {
    return std::get<1>(entry.first) == stream && memory.contains(workspace_address(entry.second));
  };
  void*& handle = handle_of_thread();
  if (!handle) { // this thread or one of autograd's has made one in the call
    bool any = false;
    for (std::size_t kind = 0; kind < kKinds; ++kind) {
      const std::unique_lock lock(map_of(kind).mutex);
      any = any || std::any_of(map_of(kind).map.begin(), map_of(kind).map.end(), is_ours);
    }
    handle = any ? blas_handle() : nullptr;
    handle_ = handle;
  }
  for (std::size_t kind = 0; kind < kKinds; ++kind) {
    Map& map = map_of(kind);
    const std::unique_lock lock(map.mutex);
    for (auto entry = map.map.begin(); entry != map.map.end();) {
      const bool ours = is_ours(*entry);
      if (ours && std::get<0>(entry->first) == handle) {
        ours_[kind] = std::move(entry->second);
      }
      entry = ours ? map.map.erase(entry) : std::next(entry); // those of other handles are freed
    }
    if (workspace_address(callers_[kind])) {
      map.map.try_emplace({handle_, stream}, std::exchange(callers_[kind], {}));
    }
  }
}

std::size_t CudaWorkspaces::bytes_of(std::size_t kind) {
  return kind == 0 ? blas_workspace_bytes() : at::cuda::getCUDABlasLtWorkspaceSize();
}

} // namespace offload
