// How weights of 8-bit floats, e4m3, lie in memory.
//
// A number is scale · e4m3, with one scale for `kSpan` numbers of a row, or for what is left of it; the sum of a part of a
// span is multiplied by it. e4m3 has a sign, 4 bits of exponent and 3 of mantissa, and 0x7F and 0xFF are NaN.
//
// Packed: for each panel of P = kPanel output columns its scales, float32 [spans, P], then its numbers, [in / n, P, n] with
// n = kPerCodes, each a byte as `stored_e4m3` says. A span with NaN has it for its scale.
#pragma once

#include <cstdint>

#include "simd.h"

namespace pipezoo {

constexpr std::int64_t kSpan = 128, kPart = 64;

inline std::int64_t spans_of(std::int64_t in) { return (in + kSpan - 1) / kSpan; }

inline std::int64_t panel_bytes_e4m3(std::int64_t in) { return kPanel * (spans_of(in) * std::int64_t(sizeof(float)) + in); }

}  // namespace pipezoo
