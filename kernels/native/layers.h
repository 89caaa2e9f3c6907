// The small operations between products, each one pass over its rows. Computed in float32, rounded once.
#pragma once

#include <cstdint>

#include "simd.h"

namespace pipezoo {

// y = x / sqrt(mean(x²) + eps) · weight; x and y [rows, size] contiguous, weight [size].
template <typename T>
void rms_norm(const T* x, const T* weight, T* y, std::int64_t rows, std::int64_t size, float eps);

// y = silu(gate) · up; gate_up [rows, 2 · size], gate first; y [rows, size].
template <typename T>
void silu_multiply(const T* gate_up, T* y, std::int64_t rows, std::int64_t size);

}  // namespace pipezoo
