// What simd.h says of vectors, with AVX-512 and its instructions for bytes.
//
// A product in bfloat16 takes two numbers of the inner dimension per lane and step, one of bytes four (VPDPBUSD). What only
// some of these CPUs have instructions for is in bfloat16_avx512.h.
#pragma once

namespace pipezoo {

using Vector = __m512;
using Words = __m512i;  // lanes of 4 bytes: one number, or two or four smaller ones
using Mask = __mmask16;

constexpr int kLanes = 16;
constexpr int kTileRows = 12;  // rows that a tile computes at most: 12 x 2 accumulators stay in registers

template <typename T>
constexpr int kPerStep = 4 / sizeof(T);

}  // namespace pipezoo

#include "bfloat16_avx512.h"

namespace pipezoo {

PIPEZOO_INLINE Vector zeros() { return _mm512_setzero_ps(); }
PIPEZOO_INLINE Vector all(float number) { return _mm512_set1_ps(number); }

// The first `count` lanes; all of them where count is as large or larger.
PIPEZOO_INLINE Mask first_lanes(std::int64_t count) {
    return count >= kLanes ? Mask(0xFFFF) : count <= 0 ? Mask(0) : Mask((1u << count) - 1);
}

PIPEZOO_INLINE Mask no_lanes() { return 0; }
PIPEZOO_INLINE Mask all_lanes() { return 0xFFFF; }
PIPEZOO_INLINE Mask without(Mask lanes, Mask others) { return lanes & ~others; }

PIPEZOO_INLINE Vector load(const float* from) { return _mm512_loadu_ps(from); }

PIPEZOO_INLINE Vector load(const bfloat16* from) {
    return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

// Other lanes are 0. The mask of this and of `store` is one of `first_lanes`.
PIPEZOO_INLINE Vector load(const float* from, Mask lanes) { return _mm512_maskz_loadu_ps(lanes, from); }

PIPEZOO_INLINE Vector load(const bfloat16* from, Mask lanes) {
    return widened(_mm256_maskz_loadu_epi16(lanes, from));
}

// Rounds to nearest, as every store does.
PIPEZOO_INLINE void store(float* to, Vector value) { _mm512_storeu_ps(to, value); }

PIPEZOO_INLINE void store(bfloat16* to, Vector value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), rounded(value));
}

PIPEZOO_INLINE void store(float* to, Vector value, Mask lanes) { _mm512_mask_storeu_ps(to, lanes, value); }

PIPEZOO_INLINE void store(bfloat16* to, Vector value, Mask lanes) { _mm256_mask_storeu_epi16(to, lanes, rounded(value)); }

PIPEZOO_INLINE Vector add_product(Vector c, Vector a, Vector b) { return _mm512_fmadd_ps(a, b, c); }
PIPEZOO_INLINE Vector subtract_product(Vector c, Vector a, Vector b) { return _mm512_fnmadd_ps(a, b, c); }
PIPEZOO_INLINE Vector product_less(Vector a, Vector b, Vector c) { return _mm512_fmsub_ps(a, b, c); }
PIPEZOO_INLINE Vector larger(Vector a, Vector b) { return _mm512_max_ps(a, b); }    // b where one is NaN
PIPEZOO_INLINE Vector smaller(Vector a, Vector b) { return _mm512_min_ps(a, b); }  // b where one is NaN
PIPEZOO_INLINE Vector larger_in(Mask lanes, Vector a, Vector b) { return _mm512_mask_max_ps(a, lanes, a, b); }
PIPEZOO_INLINE Vector where(Mask lanes, Vector value) { return _mm512_maskz_mov_ps(lanes, value); }
PIPEZOO_INLINE Mask below(Vector a, Vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }  // not where one is NaN
PIPEZOO_INLINE Vector choose(Mask lanes, Vector a, Vector b) { return _mm512_mask_blend_ps(lanes, b, a); }  // a in `lanes`
PIPEZOO_INLINE Vector absolute(Vector value) { return _mm512_abs_ps(value); }
PIPEZOO_INLINE float sum(Vector value) { return _mm512_reduce_add_ps(value); }
PIPEZOO_INLINE float largest(Vector value) { return _mm512_reduce_max_ps(value); }
PIPEZOO_INLINE float smallest(Vector value) { return _mm512_reduce_min_ps(value); }
PIPEZOO_INLINE float first(Vector value) { return _mm512_cvtss_f32(value); }
PIPEZOO_INLINE Mask is_number(Vector value) { return _mm512_cmp_ps_mask(value, value, _CMP_ORD_Q); }
PIPEZOO_INLINE bool any_nan(Vector a, Vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q); }
PIPEZOO_INLINE Vector nearest(Vector x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT); }
PIPEZOO_INLINE Vector times_power_of_two(Vector x, Vector power) { return _mm512_scalef_ps(x, power); }

// first, first + 1, first + 2, ...
PIPEZOO_INLINE Vector numbers_from(std::int64_t first) {
    const Words lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_set1_epi32(std::int32_t(first)), lane));
}

// What a step of a product reads of the right matrix.
PIPEZOO_INLINE Vector load_right(const float* from) { return _mm512_loadu_ps(from); }

// One step of a product: accumulator += (what `b` holds of its columns) x (what `a` holds of one row).
PIPEZOO_INLINE Vector step(Vector accumulator, Vector b, const float* a) {
    return _mm512_fmadd_ps(b, _mm512_set1_ps(*a), accumulator);
}

// Words of `kPerStep<T>` numbers, for `transpose`; other lanes are 0.
template <typename T>
PIPEZOO_INLINE Words load_words(const T* from, Mask lanes) {
    return _mm512_maskz_loadu_epi32(lanes, from);
}

PIPEZOO_INLINE Words no_words() { return _mm512_setzero_si512(); }

template <typename T>
PIPEZOO_INLINE void store_words(T* to, Words words) {
    _mm512_storeu_si512(to, words);
}

// What a step of a product reads of as many keys as a vector has words: a number of each key and word; in bfloat16 two of
// each, of which the first are one vector, the second another, with two keys in a word.
PIPEZOO_INLINE void load_keys(const float* from, Words* words) { words[0] = _mm512_loadu_si512(from); }

PIPEZOO_INLINE void load_keys(const bfloat16* from, Words* words) {
    const Words lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const Words pairs = _mm512_mullo_epi32(lane, _mm512_set1_epi32(0x00040004));  // where those of two keys begin
    const Words some = _mm512_loadu_si512(from), others = _mm512_loadu_si512(from + 2 * kLanes);
    words[0] = _mm512_permutex2var_epi16(some, _mm512_add_epi32(pairs, _mm512_set1_epi32(0x00020000)), others);
    words[1] = _mm512_permutex2var_epi16(some, _mm512_add_epi32(pairs, _mm512_set1_epi32(0x00030001)), others);
}

// Stores words of T for the left matrix of a product. The mask is one of `first_lanes`.
template <typename T>
PIPEZOO_INLINE void store_left(Left<T>* to, Words words, Mask lanes) {
    if constexpr (std::is_same_v<T, Left<T>>) {
        _mm512_mask_storeu_epi32(to, lanes, words);
    } else {
        const std::int64_t numbers = 2 * __builtin_popcount(lanes);
        store(to, widened(_mm512_castsi512_si256(words)), first_lanes(numbers));
        store(to + kLanes, widened(_mm512_extracti64x4_epi64(words, 1)), first_lanes(numbers - kLanes));
    }
}

// Turns as many vectors over as they have words: to[j][i] = from[i][j].
PIPEZOO_INLINE void transpose(Words (&rows)[kLanes]) {
    Words t[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        rows[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        rows[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        rows[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        rows[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {  // what is left is to turn over 4 x 4 pieces of 4 numbers
        const Words low0 = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0x88);
        const Words low1 = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0x88);
        const Words high0 = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0xdd);
        const Words high1 = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0xdd);
        t[i] = _mm512_shuffle_i32x4(low0, low1, 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(high0, high1, 0x88);
        t[i + 8] = _mm512_shuffle_i32x4(low0, low1, 0xdd);
        t[i + 12] = _mm512_shuffle_i32x4(high0, high1, 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) rows[i] = t[i];
}

// Small integers.

constexpr int kAdded = 128;  // to numbers of 8 bits where they are stored: the product of bytes wants them unsigned

PIPEZOO_INLINE Words to_integers(Vector value) { return _mm512_cvtps_epi32(value); }
PIPEZOO_INLINE Vector to_floats(Words integers) { return _mm512_cvtepi32_ps(integers); }
PIPEZOO_INLINE Words add_integers(Words a, Words b) { return _mm512_add_epi32(a, b); }
PIPEZOO_INLINE std::int32_t sum_of_integers(Words integers) { return _mm512_reduce_add_epi32(integers); }

PIPEZOO_INLINE void store_int8(std::int8_t* to, Words integers) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtsepi32_epi8(integers));
}

PIPEZOO_INLINE Vector load_float16(const std::uint8_t* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

PIPEZOO_INLINE Vector load_uint8(const std::uint8_t* from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}

PIPEZOO_INLINE Vector load_int8(const std::uint8_t* from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}

// Scales of 19 bits, of which 16 lie in one place and the last 3 in the upper bits of a byte, above a zero of 5 bits.
PIPEZOO_INLINE void load_scales_and_zeros(const std::uint8_t* upper, const std::uint8_t* lower, Vector& scales,
                                          Vector& zeros) {
    const Words high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(upper)));
    const Words low = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(lower)));
    const Words last = _mm512_slli_epi32(_mm512_and_si512(low, _mm512_set1_epi32(0xE0)), 8);
    scales = _mm512_castsi512_ps(_mm512_or_si512(_mm512_slli_epi32(high, 16), last));
    zeros = _mm512_cvtepi32_ps(_mm512_and_si512(low, _mm512_set1_epi32(0x1F)));
}

// 2^(e - 127) of e from 0 to 254; of 255 infinity.
PIPEZOO_INLINE Vector load_exponents(const std::uint8_t* from) {
    const Words bits = _mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))), 23);
    return _mm512_castsi512_ps(_mm512_max_epi32(bits, _mm512_set1_epi32(1 << 22)));  // 2^-127 has no exponent
}

// table[i] of each byte i, which is below 16.
PIPEZOO_INLINE Words look_up(const std::int8_t* table, Words bytes) {
    const __m128i entries = _mm_load_si128(reinterpret_cast<const __m128i*>(table));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(entries), bytes);
}

PIPEZOO_INLINE Words load_bytes(const std::uint8_t* from) { return _mm512_loadu_si512(from); }
PIPEZOO_INLINE void store_bytes(std::uint8_t* to, Words bytes) { _mm512_storeu_si512(to, bytes); }
PIPEZOO_INLINE Words low_nibbles(Words bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(0x0F)); }

PIPEZOO_INLINE Words high_nibbles(Words bytes) {
    return _mm512_and_si512(_mm512_srli_epi16(bytes, 4), _mm512_set1_epi8(0x0F));
}

PIPEZOO_INLINE Words join_bits(Words some, Words others) { return _mm512_or_si512(some, others); }

// In each byte the `width` bits from bit `first` on, moved to bit 4; zeros elsewhere.
template <int first, int width>
PIPEZOO_INLINE Words bits_to_fifth(Words bytes) {
    const Words mask = _mm512_set1_epi8(((1 << width) - 1) << 4);
    if constexpr (first < 4) return _mm512_and_si512(_mm512_slli_epi16(bytes, 4 - first), mask);
    return _mm512_and_si512(_mm512_srli_epi16(bytes, first < 4 ? 0 : first - 4), mask);
}

// Per lane the sum of products of `steps` times four bytes: of columns, and of the numbers of a row.
//
// Those lie at numbers + s * stride. `offset` is what they sum up to, times what is added to stored columns, negative; 0
// where nothing is.
template <int bits, bool has_offset, int steps>
PIPEZOO_INLINE Words multiply_bytes(const Words (&columns)[steps], const std::int8_t* numbers, std::ptrdiff_t stride,
                                    std::int32_t offset) {
    Words product = has_offset ? _mm512_set1_epi32(offset) : _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int s = 0; s < steps; ++s) {
        std::int32_t four;
        std::memcpy(&four, numbers + s * stride, sizeof four);
        product = _mm512_dpbusd_epi32(product, columns[s], _mm512_set1_epi32(four));
    }
    return product;
}

// Floats of 8 bits: e4m3.

constexpr int kPerCodes = 2;           // numbers of a column that lie side by side
constexpr float kScaleOfE4M3 = 1.0f;  // what a number has to be multiplied with when it is loaded

// A byte as `load_e4m3` reads it: of the exponent 3 bits, the sign, the exponent's last bit, the mantissa.
PIPEZOO_INLINE std::uint8_t stored_e4m3(std::uint8_t number) {
    return std::uint8_t((number & 0x70) << 1 | number >> 7 << 4 | (number & 0x0F));
}

// Two numbers per lane in bfloat16.
//
// The exponent's last bit and the mantissa are the upper half of bfloat16's lower byte, where its exponent's last bit and its
// mantissa are; the upper byte is looked up. Numbers below 2^-5 are looked up whole, as most of them have another form.
PIPEZOO_INLINE Words bfloat16_of_e4m3(const std::uint8_t* from) {
    alignas(16) static constexpr std::uint8_t upper[16] = {
        0x3C, 0xBC, 0x3D, 0xBD, 0x3E, 0xBE, 0x3F, 0xBF, 0x40, 0xC0, 0x41, 0xC1, 0x42, 0xC2, 0x43, 0xC3};
    alignas(64) static constexpr std::uint16_t small[32] = {
        0x0000, 0x3B00, 0x3B80, 0x3BC0, 0x3C00, 0x3C20, 0x3C40, 0x3C60,
        0x3C80, 0x3C90, 0x3CA0, 0x3CB0, 0x3CC0, 0x3CD0, 0x3CE0, 0x3CF0,
        0x8000, 0xBB00, 0xBB80, 0xBBC0, 0xBC00, 0xBC20, 0xBC40, 0xBC60,
        0xBC80, 0xBC90, 0xBCA0, 0xBCB0, 0xBCC0, 0xBCD0, 0xBCE0, 0xBCF0};
    const Words codes = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    const Words bytes = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(upper)));
    const Words shifted = _mm512_slli_epi16(codes, 4);
    const Words numbers = _mm512_mask_shuffle_epi8(shifted, 0xAAAAAAAAAAAAAAAA, bytes, shifted);
    const __mmask32 are_small = _mm512_testn_epi16_mask(codes, _mm512_set1_epi16(0xE0));
    return _mm512_mask_permutexvar_epi16(numbers, are_small, codes, _mm512_load_si512(small));
}

// Numbers of each lane's column, one step of a product after the other.
PIPEZOO_INLINE void load_e4m3(const std::uint8_t* from, Vector (&steps)[2], const float*) {
    const Words pairs = bfloat16_of_e4m3(from);
    steps[0] = lower_numbers(pairs), steps[1] = upper_numbers(pairs);
}

PIPEZOO_INLINE void load_e4m3(const std::uint8_t* from, Right<bfloat16> (&steps)[1], const bfloat16*) {
    steps[0] = right_of(bfloat16_of_e4m3(from));
}

}  // namespace pipezoo
