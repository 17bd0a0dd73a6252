#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace offload {

/// Each placeholder in `tensors` is replaced by a lease; other tensors stay. `flops` as in Lender::lease().
void lease_all(std::vector<at::Tensor>& tensors, double flops);

/// Multiplications and additions of [*, n] by [n, m]: each element of the first with m of the second.
inline double flops(const at::Tensor& a, std::int64_t m) { return 2.0 * static_cast<double>(a.numel() * m); }

} // namespace offload
