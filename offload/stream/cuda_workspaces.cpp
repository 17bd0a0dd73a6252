#include <offload/stream/cuda_workspaces.h>

#include <ATen/cuda/CUDAContextLight.h>

#include <atomic>
#include <iterator>
#include <mutex>
#include <tuple>
#include <utility>

namespace offload {

namespace {

using Map = at::cuda::WorkspaceMapWithMutex;
using Key = std::tuple<void*, void*>;

Map& map_of(std::size_t kind) {
  return kind == 0 ? at::cuda::cublas_handle_stream_to_workspace() : at::cuda::cublaslt_handle_stream_to_workspace();
}

/// Tells threads apart, those that are gone as well.
std::uint64_t this_thread() {
  static std::atomic<std::uint64_t> threads = 0;
  thread_local const std::uint64_t kNumber = ++threads;
  return kNumber;
}

} // namespace

void CudaWorkspaces::bring(cudaStream_t stream, const Wanted& wanted, const Pool& pool) {
  if (!wanted[0] && !wanted[1]) {
    return;
  }
  if (thread_ != this_thread()) {
    drop();
    handle_ = at::cuda::getCurrentCUDABlasHandle(); // and with it a workspace, where this handle has none yet
    thread_ = this_thread();
    take_back(stream, pool);
  }
  for (std::size_t kind = 0; kind < kKinds; ++kind) {
    Map& map = map_of(kind);
    {
      const std::unique_lock lock(map.mutex);
      if (const auto callers = map.map.find({handle_, stream}); callers != map.map.end()) {
        callers_[kind] = std::move(callers->second);
        map.map.erase(callers);
      }
      if (ours_[kind]) {
        map.map.emplace(Key(handle_, stream), std::move(ours_[kind]));
        ours_[kind].clear();
        continue;
      }
    }
    if (wanted[kind]) {
      kind == 0 ? static_cast<void>(at::cuda::getCurrentCUDABlasHandle())
                : static_cast<void>(at::cuda::getCUDABlasLtWorkspace());
    }
  }
}

void CudaWorkspaces::take_back(cudaStream_t stream, const Pool& pool) {
  for (std::size_t kind = 0; kind < kKinds; ++kind) {
    Map& map = map_of(kind);
    const std::unique_lock lock(map.mutex);
    for (auto entry = map.map.begin(); entry != map.map.end();) {
      const bool ours = std::get<1>(entry->first) == stream && pool.segments().contains(entry->second.get());
      if (ours) {
        thread_ = this_thread();
        handle_ = std::get<0>(entry->first);
        ours_[kind] = std::move(entry->second);
      }
      entry = ours ? map.map.erase(entry) : std::next(entry);
    }
    if (callers_[kind]) {
      map.map.emplace(Key(handle_, stream), std::move(callers_[kind]));
      callers_[kind].clear();
    }
  }
}

std::size_t CudaWorkspaces::bytes_of(std::size_t kind) {
  return kind == 0 ? at::cuda::getChosenWorkspaceSize() : at::cuda::getCUDABlasLtWorkspaceSize();
}

void CudaWorkspaces::drop() {
  for (at::DataPtr& workspace : ours_) {
    workspace.clear();
  }
  thread_ = 0;
}

} // namespace offload
