// Weights of 8-bit floats, packed as spans.h says.
#pragma once

#include <cstdint>

#include "linear.h"

namespace pipezoo {

// Packs rows of blocks: a scale in float32 and then a byte for each number, of which a block has 128, 64 or 32. Blocks within
// 128 numbers have one scale. To be gated, see linear.h.
template <std::int64_t block>
void pack_e4m3(const std::uint8_t* rows, std::uint8_t* packed, std::int64_t out, std::int64_t in, Form form);

// y[i] = row tokens[i] of a packed weight [out, in]; NaN for what is none of its rows.
template <typename T>
void packed_rows_e4m3(const std::int64_t* tokens, const std::uint8_t* packed, T* y, std::int64_t rows, std::int64_t in,
                      std::int64_t out);

}  // namespace pipezoo
