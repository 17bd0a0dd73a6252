#include <offload/runtime/compute_threads.h>

#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <ATen/ops/empty.h>

#include <memory>

namespace offload {

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized" // what g++ says of c10::SmallVector in that iterator
#endif

/// at::parallel_for() is a template that takes the threads of the OpenMP of whoever compiles it, which are others than
/// those of LibTorch. An iterator's loop runs inside of LibTorch.
Team compute_threads() {
  const auto each = std::make_shared<at::Tensor>(at::empty({at::get_num_threads()}, at::kByte));
  const std::shared_ptr<at::TensorIterator> iterator(new at::TensorIterator(at::TensorIterator::nullary_op(*each)));
  return [each, iterator](const std::function<void()>& work) {
    iterator->for_each([&](char**, const std::int64_t*, std::int64_t) { work(); }, /*grain_size=*/1);
  };
}

} // namespace offload
