// y = x Wᵀ + b with W packed once into panels of `kPanel` output columns.
//
// Of weights of few bits, rows of x are rounded to 8 bits per group of 32 as well: products within a group are exact in
// integers, and what groups contribute is added in float32. With weights of 8-bit floats nothing is rounded: their numbers are
// exact in the type of x.
#pragma once

#include <cstdint>

#include "activations.h"
#include "packing.h"

namespace pipezoo {

// What is written: the product, gated, or wide, which is the product in float32 whatever T is.
enum class Form : std::int64_t { plain, gated, wide };

// Packs a weight [out, in] into [panels, in / per_step, kPanel, per_step]. `in` must be a multiple of per_step. To be
// gated, the weight is all of G and below it all of U, `out` a multiple of kPanel, and each panel gets `kLanes` rows of
// both.
template <typename T>
void pack(const T* weight, T* packed, std::int64_t out, std::int64_t in, Form form);

// x [rows, in] and y [rows, out], both contiguous; bias [out] or null. Sums are float32. `in` is a multiple of what a block
// of the packing holds.
//
// Gated, y is activation(x Gᵀ) · (x Uᵀ) [rows, out / 2], and the bias is `kLanes` of G's, as many of U's, the next of G's, and
// so on.
template <typename T>
void linear(Packing packing, const T* x, const void* packed, const T* bias, void* y, std::int64_t rows, std::int64_t in,
            std::int64_t out, Form form, Activation activation);

// y[i] = row tokens[i] of a packed weight [out, in]: a head that shares the embedding's weight serves both. NaN for what
// is none of its rows.
template <typename T>
void packed_rows(const std::int64_t* tokens, const T* packed, T* y, std::int64_t rows, std::int64_t in,
                 std::int64_t out);

}  // namespace pipezoo
