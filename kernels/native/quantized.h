// y = x Wᵀ + b with W of few bits, packed as packing.h says.
//
// Each row of x is rounded to 8 bits per group of 32 as well. Products within a group are exact in integers; what groups
// contribute is added in float32.
#pragma once

#include <cstdint>

#include "linear.h"
#include "packing.h"

namespace pipezoo {

// Rounds a weight [out, in] to int8 or int4, in a multiple of 32, and packs it. Columns beyond `out` are zeros. To be
// gated, see linear.h. What is computed of a group with NaN or infinity is NaN. Throws std::bad_alloc when all threads
// are done.
template <typename T, Packing packing>
void pack_quantized(const T* weight, std::uint8_t* packed, std::int64_t out, std::int64_t in, Form form);

// x [rows, in] and y [rows, out], both contiguous; bias [out] or null; forms as in linear.h. `in` is a multiple of 32, and
// of what a block holds.
template <typename T, Packing packing>
void linear_quantized(const T* x, const std::uint8_t* packed, const T* bias, void* y, std::int64_t rows, std::int64_t in,
                      std::int64_t out, Form form, Activation activation);

// y[i] = row tokens[i] of a packed weight [out, in]; NaN for what is none of its rows.
template <typename T, Packing packing>
void packed_rows_quantized(const std::int64_t* tokens, const std::uint8_t* packed, T* y, std::int64_t rows,
                           std::int64_t in, std::int64_t out);

}  // namespace pipezoo
