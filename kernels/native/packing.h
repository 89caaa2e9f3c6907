// How weights of few bits lie in memory, in groups of 32 numbers along the inner dimension.
//
// All are affine: a number is scale · q + minimum, with q of so many bits. int8 and int4 are what we round to. The others
// have the numbers, scales and minima of a file: GGUF's types, of which Q8_0 is int8, and affine4 and affine8 of AWQ, GPTQ
// and compressed-tensors, with a scale and a zero for each 32, 64 or 128 numbers.
//
//            q            scale, of a group                      minimum
//     int8   -128 to 127  float16                                none
//     int4   0 to 15      8 bits · the column's step             8 bits · the column's step
//     q4_0   0 to 15      float16                                -8 · scale
//     q4_1   0 to 15      float16                                float16
//     q4_k   0 to 15      8 bits · the block's step              8 bits · the block's step
//     q5_k   0 to 31      likewise                               likewise
//     q6_k   -32 to 31    of 16 numbers 8 bits · the block's step  none
//     affine4_*  0 to 15      of the block 19 bits                 -zero · scale, zero of 5 bits
//     affine8_*  -128 to 127  of the block float32                 (128 - zero) · scale, zero of 8 bits
//     mxfp4       0, ±1, ±2, ±3, ±4, ±6, ±8, ±12    2^(8 bits - 128)  none
//
// A block is 8 groups; its steps are float16. A column's are float32. Steps of minima are negative, or 0. Of affine ones a
// block has the numbers of one scale. 19 bits are the upper ones of a float32: all float16 and bfloat16 numbers are such.
// Those of mxfp4 are E2M1, doubled so that they are whole, and the scale is half the file's.
//
// Packed: for each panel of P = kPanel output columns, with int4 first the column's steps of scales [P] and of minima [P].
// Then, for each block, with q4_k and q5_k its steps of scales [P] and of minima [P], with q6_k those of scales [P]; with
// affine4 the upper 16 bits of its scales [P], and [P] bytes with 3 more above the zero; with affine8 its scales [P] and its
// zeros [P]. Then, for each group
//     its scales [P], with q6_k [2, P], and its minima [P]; with affine ones none
//     8 bits: 8 steps of 4 numbers per column, [8, P, 4] of q + kAdded
//     others: the lower 4 bits of q, q6_k's with 32 added, mxfp4's as the file's codes: [8, P / 2, 4], the first columns in
//             the low halves, the others in the high ones; then q's upper bits, see `load_step`
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "simd.h"

namespace pipezoo {

// `none` are weights in the type of x, `e4m3` are floats: see spans.h. The numbers are those of pipezoo_core's
// `native/packing.py`.
enum class Packing : std::int64_t { none, int8, int4, q4_0, q4_1, q4_k, q5_k, q6_k,
    affine4_32, affine4_64, affine4_128, affine8_32, affine8_64, mxfp4, e4m3 };

constexpr int kGroup = 32;                // numbers that share a scale
constexpr int kPerInt = 4;                // numbers of 8 bits in a lane of 32
constexpr int kSteps = kGroup / kPerInt;  // per group

// What the codes of E2M1 stand for, doubled, with `kCodesZero` added: a sign, 2 bits of exponent and one of mantissa.
constexpr int kCodesZero = 12;
alignas(16) constexpr std::int8_t kCodes[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

template <Packing packing>
constexpr bool kIsAffine8 = packing == Packing::affine8_32 || packing == Packing::affine8_64;

template <Packing packing>
constexpr bool kIsAffine4 =
    packing == Packing::affine4_32 || packing == Packing::affine4_64 || packing == Packing::affine4_128;

template <Packing packing>
constexpr bool kIsAffine = kIsAffine4<packing> || kIsAffine8<packing>;

template <Packing packing>
constexpr int kBits = packing == Packing::int8 || kIsAffine8<packing> ? 8 : packing == Packing::q5_k ? 5 : packing == Packing::q6_k ? 6 : 4;

// Bits of the numbers that are multiplied. Those of mxfp4 are looked up, from 0 to 24.
template <Packing packing>
constexpr int kProductBits = packing == Packing::mxfp4 ? 5 : kBits<packing>;

template <Packing packing>
constexpr bool kHasMinima = packing != Packing::int8 && packing != Packing::q6_k && packing != Packing::mxfp4;

template <Packing packing>
constexpr bool kHasBlocks = packing == Packing::q4_k || packing == Packing::q5_k || packing == Packing::q6_k;

template <Packing packing>
constexpr int kParts = packing == Packing::q6_k ? 2 : 1;  // of a group, each with a scale

// What is added to numbers where they are stored, because the product of bytes wants them unsigned.
template <Packing packing>
constexpr int kOffset =
    kBits<packing> == 8 ? kAdded : packing == Packing::q6_k ? 32 : packing == Packing::mxfp4 ? kCodesZero : 0;

template <Packing packing>
constexpr std::int64_t kBlockGroups = kHasBlocks<packing>                                              ? 8
                                      : packing == Packing::affine4_128                                ? 4
                                      : packing == Packing::affine4_64 || packing == Packing::affine8_64 ? 2
                                                                                                       : 1;

template <Packing packing>
constexpr std::int64_t kHeadBytes = packing == Packing::int4 ? 2 * kPanel * sizeof(float) : 0;

template <Packing packing>
constexpr std::int64_t kStepBytes = kPanel * (kIsAffine4<packing>   ? 3  // of a block
                                              : kIsAffine8<packing> ? 5
                                              : !kHasBlocks<packing> ? 0
                                              : kHasMinima<packing>  ? 4
                                                                     : 2);

template <Packing packing>
constexpr std::int64_t kScaleBytes =  // of a group, minima included
    kPanel * (kIsAffine<packing> ? 0 : packing == Packing::q4_1 ? 4 : packing == Packing::mxfp4 ? 1 : 2);

template <Packing packing>
constexpr std::int64_t kGroupBytes = kScaleBytes<packing> + kPanel * kGroup * kBits<packing> / 8;

template <Packing packing>
constexpr std::int64_t kBlockBytesOf = kStepBytes<packing> + kBlockGroups<packing> * kGroupBytes<packing>;

template <Packing packing>
std::int64_t panel_bytes(std::int64_t groups) {
    return kHeadBytes<packing> + groups / kBlockGroups<packing> * kBlockBytesOf<packing>;
}

// Scales and minima of a vector of a panel's columns, from `column` on. `head` is of the panel, `steps` of the block, and
// `part` one of a group's that have scales of their own.
template <Packing packing, int part>
PIPEZOO_INLINE void load_scales(const std::uint8_t* head, const std::uint8_t* steps, const std::uint8_t* group,
                                int column, Vector& scales, Vector& minima) {
    minima = zeros();
    if constexpr (packing == Packing::int4) {
        const float* of_columns = reinterpret_cast<const float*>(head);
        scales = load_uint8(group + column) * load(of_columns + column);
        minima = load_uint8(group + kPanel + column) * load(of_columns + kPanel + column);
    } else if constexpr (kIsAffine4<packing>) {
        Vector zeros;
        load_scales_and_zeros(steps + column * 2, steps + kPanel * 2 + column, scales, zeros);
        minima = scales * zeros * all(-1.0f);
    } else if constexpr (kIsAffine8<packing>) {
        scales = load(reinterpret_cast<const float*>(steps) + column);
        minima = scales * (all(128.0f) - load_uint8(steps + kPanel * 4 + column));
    } else if constexpr (packing == Packing::q6_k) {
        scales = load_int8(group + part * kPanel + column) * load_float16(steps + column * 2);
    } else if constexpr (packing == Packing::mxfp4) {
        scales = load_exponents(group + column) * all(0.5f);
    } else if constexpr (kHasBlocks<packing>) {
        scales = load_uint8(group + column) * load_float16(steps + column * 2);
        minima = load_uint8(group + kPanel + column) * load_float16(steps + (kPanel + column) * 2);
    } else {
        scales = load_float16(group + column * 2);
        if constexpr (packing == Packing::q4_0) minima = scales * all(-8.0f);
        if constexpr (packing == Packing::q4_1) minima = load_float16(group + (kPanel + column) * 2);
    }
}

// 4 numbers of each column of a panel's first half, or of its second; `from` is behind the group's scales.
//
// Upper bits lie in vectors like the lower ones, of 2 or 4 steps: in each byte first those of the first step's first
// columns, then of its other columns, then of the next step's first ones.
template <Packing packing, int half, int step>
PIPEZOO_INLINE Words load_step(const std::uint8_t* from) {
    constexpr int vector = kLanes * kPerInt, width = kBits<packing> - 4;
    if constexpr (kBits<packing> == 8) return load_bytes(from + (2 * step + half) * vector);
    const Words both = load_bytes(from + step * vector), low = half ? high_nibbles(both) : low_nibbles(both);
    if constexpr (width > 0) {
        constexpr int place = (2 * step + half) * width;
        const Words upper = load_bytes(from + kSteps * vector + place / 8 * vector);
        return join_bits(low, bits_to_fifth<place % 8, width>(upper));
    }
    return packing == Packing::mxfp4 ? look_up(kCodes, low) : low;
}

// Calls `work` with a packing of few bits as a compile-time one.
template <typename Work>
void with_packing(Packing packing, Work&& work) {
    const auto known = [&]<Packing... packings>(std::integer_sequence<Packing, packings...>) {
        static_assert(sizeof...(packings) == std::size_t(Packing::e4m3) - 1, "all but `none` and `e4m3`");
        ((packing == packings ? work(std::integral_constant<Packing, packings>{}) : void()), ...);
    };
    using enum Packing;
    known(std::integer_sequence<Packing, int8, int4, q4_0, q4_1, q4_k, q5_k, q6_k, affine4_32, affine4_64, affine4_128,
                                affine8_32, affine8_64, mxfp4>{});
}

// Calls `work` with each step of a part of a group as a compile-time number, from 0 on.
template <int count, int step = 0, typename Work>
PIPEZOO_INLINE void each_step(Work&& work) {
    if constexpr (step < count) {
        work(std::integral_constant<int, step>{});
        each_step<count, step + 1>(work);
    }
}

}  // namespace pipezoo
