// The small operations between products, each one pass over its rows. Computed in float32, rounded once.
#pragma once

#include <cstdint>

#include "simd.h"

namespace pipezoo {

// y = x / sqrt(mean(x²) + eps) · weight; x [rows / heads, heads, size] with `stride` numbers from one to the next of the
// first dimension, contiguous in the others; y [rows, size] contiguous, weight [size].
template <typename T>
void rms_norm(const T* x, const T* weight, T* y, std::int64_t rows, std::int64_t size, std::int64_t heads,
              std::int64_t stride, float eps);

// y = silu(gate) · up; gate_up [rows, 2 · size], gate first; y [rows, size].
template <typename T>
void silu_multiply(const T* gate_up, T* y, std::int64_t rows, std::int64_t size);

// sum = x + y, `count` numbers each.
template <typename T>
void add(const T* x, const T* y, T* sum, std::int64_t count);

// y[i] = weight[tokens[i]]; weight [vocabulary, size]. NaN for what is no token of the vocabulary.
template <typename T>
void embedding(const std::int64_t* tokens, const T* weight, T* y, std::int64_t rows, std::int64_t size,
               std::int64_t vocabulary);

// cos and sin [rows, 2 · half] of positions · frequencies, times scaling; the second half of a row repeats the first.
template <typename T>
void rotary_angles(const std::int64_t* positions, const float* frequencies, T* cos, T* sin, std::int64_t rows,
                   std::int64_t half, float scaling);

}  // namespace pipezoo
