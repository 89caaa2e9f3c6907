// y = x Wᵀ + b with W of 8 or 4 bits, in groups of 32 numbers along the inner dimension.
//
// A number of 8 bits is scale · q, q from -127 to 127, the scale a float16 per group. One of 4 bits is
// scale · q + minimum, q from 0 to 15; a group's scale and minimum are 8 bits, times the column's step of scales and of
// minima, which are float32, the latter negative or 0. Each row of x is rounded to 8 bits per group as well, and
// products within a group are exact in integers; what groups contribute is added in float32.
//
// Packed: for each panel of P = kPanel output columns, with 4 bits first the steps of scales [P] and of minima [P], and
// then for each group
//     8 bits: scales [P] float16, and 8 steps of 4 numbers per column: [8, P, 4] of q + kAdded
//     4 bits: scales [P], minima [P], and [8, P / 2, 4], the first columns in the low halves, the others in the high ones
#pragma once

#include <cstdint>

#include "linear.h"

namespace pipezoo {

// Quantizes and packs a weight [out, in], in a multiple of 32. Columns beyond `out` are zeros. To be gated, see linear.h.
// What is computed of a group with NaN or infinity is NaN. Throws std::bad_alloc when all threads are done.
template <typename T, int bits>
void pack_quantized(const T* weight, std::uint8_t* packed, std::int64_t out, std::int64_t in, Form form);

// x [rows, in] and y [rows, out], both contiguous; bias [out] or null; forms as in linear.h.
template <typename T, int bits>
void linear_quantized(const T* x, const std::uint8_t* packed, const T* bias, void* y, std::int64_t rows, std::int64_t in,
                      std::int64_t out, Form form, Activation activation);

// y[i] = row tokens[i] of a packed weight [out, in]; NaN for what is none of its rows.
template <typename T, int bits>
void packed_rows_quantized(const std::int64_t* tokens, const std::uint8_t* packed, T* y, std::int64_t rows,
                           std::int64_t in, std::int64_t out);

}  // namespace pipezoo
