// The small operations between products, each one pass over its rows. Computed in float32, rounded once.
#pragma once

#include <cstdint>

#include "activations.h"

namespace pipezoo {

// y = x / sqrt(mean(x²) + eps) · (weight + offset); x [rows / heads, heads, size] with `stride` numbers from one to the
// next of the first dimension, contiguous in the others; y [rows, size] contiguous, weight [size].
template <typename T>
void rms_norm(const T* x, const T* weight, T* y, std::int64_t rows, std::int64_t size, std::int64_t heads,
              std::int64_t stride, float eps, float offset);

// y = (x - mean(x)) / sqrt(variance(x) + eps) · weight + bias, each of these two [size] or null; x and y as above.
template <typename T>
void layer_norm(const T* x, const T* weight, const T* bias, T* y, std::int64_t rows, std::int64_t size,
                std::int64_t heads, std::int64_t stride, float eps);

// y = activation(gate) · up; gate_up [rows, 2 · size], gate first; y [rows, size].
template <typename T>
void gated(const T* gate_up, T* y, std::int64_t rows, std::int64_t size, Activation activation);

// In all that follow, a row has `size` numbers side by side, and `stride` says how far apart rows are, 0 for one row that
// serves all. What is written is contiguous; it may be what is read, where that is contiguous, too.

// y = activation(x).
template <typename T>
void activate(const T* x, T* y, std::int64_t rows, std::int64_t size, std::int64_t stride, Activation activation);

// sum = x + factor · y.
template <typename T>
void add(const T* x, const T* y, T* sum, std::int64_t rows, std::int64_t size, std::int64_t x_stride,
         std::int64_t y_stride, float factor);

// product = x · y.
template <typename T>
void multiply(const T* x, const T* y, T* product, std::int64_t rows, std::int64_t size, std::int64_t x_stride,
              std::int64_t y_stride);

// y = factor · x.
template <typename T>
void scale(const T* x, T* y, std::int64_t rows, std::int64_t size, std::int64_t stride, float factor);

// y = x, where it is less than `low` that, and where it is greater than `high` that. NaN stays NaN.
template <typename T>
void clamp(const T* x, T* y, std::int64_t rows, std::int64_t size, std::int64_t stride, float low, float high);

// y[i] = weight[tokens[i]]; weight [vocabulary, size]. NaN for what is no token of the vocabulary.
template <typename T>
void embedding(const std::int64_t* tokens, const T* weight, T* y, std::int64_t rows, std::int64_t size,
               std::int64_t vocabulary);

// cos and sin [rows, 2 · half] of positions · frequencies, times scaling; the second half of a row repeats the first.
template <typename T>
void rotary_angles(const std::int64_t* positions, const float* frequencies, T* cos, T* sin, std::int64_t rows,
                   std::int64_t half, float scaling);

}  // namespace pipezoo
