// Packs rows that a file has quantized with their own numbers, scales and minima: nothing is rounded.
//
// The blocks are those of ggml's quantized types; facts from the `gguf` package, gguf/quants.py. Affine ones are those of
// pipezoo_core's `weights/quantized/affine.py`.
#pragma once

#include <cstdint>

#include "linear.h"
#include "packing.h"

namespace pipezoo {

// Packs a weight [out, in] whose rows lie one behind the other as in the file; int8 is of Q8_0. `in` is a multiple of what
// a block of the type holds, 32 numbers or 256. Columns beyond `out` are zeros. To be gated, see linear.h.
template <Packing packing>
void pack_stored(const std::uint8_t* rows, std::uint8_t* packed, std::int64_t out, std::int64_t in, Form form);

}  // namespace pipezoo
