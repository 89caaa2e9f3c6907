// Weights of few bits, packed as packing.h says.
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

// y[i] = row tokens[i] of a packed weight [out, in]; NaN for what is none of its rows.
template <typename T>
void packed_rows_quantized(Packing packing, const std::int64_t* tokens, const std::uint8_t* packed, T* y, std::int64_t rows,
                           std::int64_t in, std::int64_t out);

}  // namespace pipezoo
