// What simd.h says of vectors, with AVX2.
//
// Products are of float32 here, whatever lies in memory: the left matrix is widened when a tile is prepared, the right
// one when it is read.
#pragma once

namespace pipezoo {

using Vector = __m256;
using Words = __m256i;  // lanes of 4 bytes: one number, or four smaller ones

struct Mask {
    __m256 lanes;  // all bits set, or none
};

constexpr int kLanes = 8;
constexpr int kTileRows = 6;  // rows that a tile computes at most: 6 x 2 accumulators stay in registers

constexpr bool kRowInPairs = true;  // one row is multiplied by two panels at a time: its sums are too short to be alone

template <typename T>
constexpr int kPerStep = 1;

template <typename T>
using Left = float;  // what a product reads of its left matrix

template <typename T>
using Right = Vector;  // what a step of a product has of its right matrix

PIPEZOO_INLINE Vector zeros() { return _mm256_setzero_ps(); }
PIPEZOO_INLINE Vector all(float number) { return _mm256_set1_ps(number); }

// first, first + 1, first + 2, ...
PIPEZOO_INLINE Words integers_from(std::int32_t first) {
    return _mm256_add_epi32(_mm256_set1_epi32(first), _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
}

PIPEZOO_INLINE Vector numbers_from(std::int64_t first) { return _mm256_cvtepi32_ps(integers_from(std::int32_t(first))); }

// The first `count` lanes; all of them where count is as large or larger.
PIPEZOO_INLINE Mask first_lanes(std::int64_t count) {
    const std::int32_t bound = std::int32_t(count > kLanes ? kLanes : count < 0 ? 0 : count);
    return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(bound), integers_from(0)))};
}

PIPEZOO_INLINE Mask no_lanes() { return {_mm256_setzero_ps()}; }
PIPEZOO_INLINE Mask all_lanes() { return {_mm256_castsi256_ps(_mm256_set1_epi32(-1))}; }
PIPEZOO_INLINE Mask without(Mask lanes, Mask others) { return {_mm256_andnot_ps(others.lanes, lanes.lanes)}; }
PIPEZOO_INLINE int count(Mask lanes) { return __builtin_popcount(_mm256_movemask_ps(lanes.lanes)); }

PIPEZOO_INLINE Vector widened(__m128i numbers) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(numbers), 16));
}

// The upper halves of lanes.
PIPEZOO_INLINE __m128i upper_halves(Words words) {
    const Words halves = _mm256_srli_epi32(words, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
}

PIPEZOO_INLINE __m128i rounded(Vector value) {
    const Words bits = _mm256_castps_si256(value);
    const Words last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));  // ties go to even ones
    const Words nearest = _mm256_add_epi32(bits, _mm256_add_epi32(last, _mm256_set1_epi32(0x7FFF)));
    const Words nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));  // stays one
    const Words is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    return upper_halves(_mm256_blendv_epi8(nearest, nan, is_nan));
}

PIPEZOO_INLINE Vector load(const float* from) { return _mm256_loadu_ps(from); }

PIPEZOO_INLINE Vector load(const bfloat16* from) {
    return widened(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

// Other lanes are 0. The mask of this and of `store` is one of `first_lanes`.
PIPEZOO_INLINE Vector load(const float* from, Mask lanes) {
    return _mm256_maskload_ps(from, _mm256_castps_si256(lanes.lanes));
}

PIPEZOO_INLINE Vector load(const bfloat16* from, Mask lanes) {
    const int number = count(lanes);
    if (number == kLanes) return load(from);
    alignas(16) bfloat16 numbers[kLanes] = {};
    std::memcpy(numbers, from, number * sizeof(bfloat16));
    return load(numbers);
}

// Rounds to nearest, as every store does.
PIPEZOO_INLINE void store(float* to, Vector value) { _mm256_storeu_ps(to, value); }

PIPEZOO_INLINE void store(bfloat16* to, Vector value) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), rounded(value));
}

PIPEZOO_INLINE void store(float* to, Vector value, Mask lanes) {
    _mm256_maskstore_ps(to, _mm256_castps_si256(lanes.lanes), value);
}

PIPEZOO_INLINE void store(bfloat16* to, Vector value, Mask lanes) {
    const int number = count(lanes);
    if (number == kLanes) return store(to, value);
    alignas(16) bfloat16 numbers[kLanes];
    store(numbers, value);
    std::memcpy(to, numbers, number * sizeof(bfloat16));
}

PIPEZOO_INLINE Vector add_product(Vector c, Vector a, Vector b) { return _mm256_fmadd_ps(a, b, c); }
PIPEZOO_INLINE Vector subtract_product(Vector c, Vector a, Vector b) { return _mm256_fnmadd_ps(a, b, c); }
PIPEZOO_INLINE Vector product_less(Vector a, Vector b, Vector c) { return _mm256_fmsub_ps(a, b, c); }
PIPEZOO_INLINE Vector larger(Vector a, Vector b) { return _mm256_max_ps(a, b); }    // b where one is NaN
PIPEZOO_INLINE Vector smaller(Vector a, Vector b) { return _mm256_min_ps(a, b); }  // b where one is NaN
PIPEZOO_INLINE Vector where(Mask lanes, Vector value) { return _mm256_and_ps(lanes.lanes, value); }

PIPEZOO_INLINE Vector larger_in(Mask lanes, Vector a, Vector b) {
    return _mm256_blendv_ps(a, _mm256_max_ps(a, b), lanes.lanes);
}

PIPEZOO_INLINE Mask below(Vector a, Vector b) { return {_mm256_cmp_ps(a, b, _CMP_LT_OQ)}; }  // not where one is NaN
PIPEZOO_INLINE Vector choose(Mask lanes, Vector a, Vector b) { return _mm256_blendv_ps(b, a, lanes.lanes); }  // a in `lanes`
PIPEZOO_INLINE Vector absolute(Vector value) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), value); }
PIPEZOO_INLINE float first(Vector value) { return _mm256_cvtss_f32(value); }

// Combines all lanes, in halves.
template <typename Combine>
PIPEZOO_INLINE float reduce(Vector value, Combine&& combine) {
    __m128 half = combine(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    half = combine(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(combine(half, _mm_movehdup_ps(half)));
}

PIPEZOO_INLINE float sum(Vector value) {
    return reduce(value, [](__m128 a, __m128 b) { return _mm_add_ps(a, b); });
}

PIPEZOO_INLINE float largest(Vector value) {
    return reduce(value, [](__m128 a, __m128 b) { return _mm_max_ps(a, b); });
}

PIPEZOO_INLINE float smallest(Vector value) {
    return reduce(value, [](__m128 a, __m128 b) { return _mm_min_ps(a, b); });
}

PIPEZOO_INLINE Mask is_number(Vector value) { return {_mm256_cmp_ps(value, value, _CMP_ORD_Q)}; }
PIPEZOO_INLINE bool any_nan(Vector a, Vector b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_UNORD_Q)); }

PIPEZOO_INLINE Vector nearest(Vector x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// The power is a whole number from -126 to 127.
PIPEZOO_INLINE Vector times_power_of_two(Vector x, Vector power) {
    const Words exponent = _mm256_add_epi32(_mm256_cvtps_epi32(power), _mm256_set1_epi32(127));
    return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

// What a step of a product reads of the right matrix.
template <typename T>
PIPEZOO_INLINE Vector load_right(const T* from) {
    return load(from);
}

// One step of a product: accumulator += (what `b` holds of its columns) x (what `a` holds of one row).
PIPEZOO_INLINE Vector step(Vector accumulator, Vector b, const float* a) {
    return _mm256_fmadd_ps(b, _mm256_broadcast_ss(a), accumulator);
}

// Numbers, widened, for `transpose`; other lanes are 0.
template <typename T>
PIPEZOO_INLINE Words load_words(const T* from, Mask lanes) {
    return _mm256_castps_si256(load(from, lanes));
}

PIPEZOO_INLINE Words no_words() { return _mm256_setzero_si256(); }

PIPEZOO_INLINE void store_words(float* to, Words words) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), words);
}

PIPEZOO_INLINE void store_words(bfloat16* to, Words words) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), upper_halves(words));
}

// What a step of a product reads of as many keys as a vector has words.
template <typename T>
PIPEZOO_INLINE void load_keys(const T* from, Words* words) {
    words[0] = _mm256_castps_si256(load(from));
}

// Stores words for the left matrix of a product. The mask is one of `first_lanes`.
template <typename T>
PIPEZOO_INLINE void store_left(float* to, Words words, Mask lanes) {
    store(to, _mm256_castsi256_ps(words), lanes);
}

// Turns as many vectors over as they have words: to[j][i] = from[i][j].
PIPEZOO_INLINE void transpose(Words (&rows)[kLanes]) {
    Words t[kLanes];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        rows[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
        rows[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
        rows[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
        rows[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {  // what is left is to turn over 2 x 2 pieces of 4 numbers
        t[i] = _mm256_permute2x128_si256(rows[i], rows[i + 4], 0x20);
        t[i + 4] = _mm256_permute2x128_si256(rows[i], rows[i + 4], 0x31);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) rows[i] = t[i];
}

// Small integers.

constexpr int kAdded = 0;  // to numbers of 8 bits where they are stored: nothing

PIPEZOO_INLINE Words to_integers(Vector value) { return _mm256_cvtps_epi32(value); }
PIPEZOO_INLINE Vector to_floats(Words integers) { return _mm256_cvtepi32_ps(integers); }
PIPEZOO_INLINE Words add_integers(Words a, Words b) { return _mm256_add_epi32(a, b); }

PIPEZOO_INLINE std::int32_t sum_of_integers(Words integers) {
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(integers), _mm256_extracti128_si256(integers, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xB1)));
}

PIPEZOO_INLINE void store_int8(std::int8_t* to, Words integers) {
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(integers), _mm256_extracti128_si256(integers, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(halves, halves));
}

PIPEZOO_INLINE Vector load_float16(const std::uint8_t* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

PIPEZOO_INLINE Vector load_uint8(const std::uint8_t* from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}

PIPEZOO_INLINE Vector load_int8(const std::uint8_t* from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}

// Scales of 19 bits, of which 16 lie in one place and the last 3 in the upper bits of a byte, above a zero of 5 bits.
PIPEZOO_INLINE void load_scales_and_zeros(const std::uint8_t* upper, const std::uint8_t* lower, Vector& scales,
                                          Vector& zeros) {
    const Words high = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(upper)));
    const Words low = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(lower)));
    const Words last = _mm256_slli_epi32(_mm256_and_si256(low, _mm256_set1_epi32(0xE0)), 8);
    scales = _mm256_castsi256_ps(_mm256_or_si256(_mm256_slli_epi32(high, 16), last));
    zeros = _mm256_cvtepi32_ps(_mm256_and_si256(low, _mm256_set1_epi32(0x1F)));
}

// 2^(e - 127) of e from 0 to 254; of 255 infinity.
PIPEZOO_INLINE Vector load_exponents(const std::uint8_t* from) {
    const Words bits = _mm256_slli_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))), 23);
    return _mm256_castsi256_ps(_mm256_max_epi32(bits, _mm256_set1_epi32(1 << 22)));  // 2^-127 has no exponent
}

// table[i] of each byte i, which is below 16.
PIPEZOO_INLINE Words look_up(const std::int8_t* table, Words bytes) {
    const __m128i entries = _mm_load_si128(reinterpret_cast<const __m128i*>(table));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(entries), bytes);
}

PIPEZOO_INLINE Words load_bytes(const std::uint8_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

PIPEZOO_INLINE void store_bytes(std::uint8_t* to, Words bytes) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes);
}

PIPEZOO_INLINE Words low_nibbles(Words bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi8(0x0F)); }

PIPEZOO_INLINE Words high_nibbles(Words bytes) {
    return _mm256_and_si256(_mm256_srli_epi16(bytes, 4), _mm256_set1_epi8(0x0F));
}

PIPEZOO_INLINE Words join_bits(Words some, Words others) { return _mm256_or_si256(some, others); }

// In each byte the `width` bits from bit `first` on, moved to bit 4; zeros elsewhere.
template <int first, int width>
PIPEZOO_INLINE Words bits_to_fifth(Words bytes) {
    const Words mask = _mm256_set1_epi8(((1 << width) - 1) << 4);
    if constexpr (first < 4) return _mm256_and_si256(_mm256_slli_epi16(bytes, 4 - first), mask);
    return _mm256_and_si256(_mm256_srli_epi16(bytes, first < 4 ? 0 : first - 4), mask);
}

// Per lane the sum of products of `steps` times four bytes, of columns, and of the numbers of a row.
//
// Those lie at numbers + s * stride. `offset` is what they sum up to, times what is added to stored columns, negative; 0
// where nothing is. The instruction wants one factor unsigned and adds two products in 16 bits. Numbers of up to 6 bits are unsigned; of 4 bits
// 8 steps fit into 16 bits, of 5 bits 4, of 6 bits 2: 2 · 2 · 63 · 127 < 2^15. Of 8 bits both are signed, the row's at most
// 127: the columns' are made unsigned, and the row's take their signs.
template <int bits, bool has_offset, int steps>
PIPEZOO_INLINE Words multiply_bytes(const Words (&columns)[steps], const std::int8_t* numbers, std::ptrdiff_t stride,
                                    std::int32_t offset) {
    constexpr int fitting = bits == 4 ? 8 : bits == 5 ? 4 : bits == 6 ? 2 : 1;
    static_assert(steps % fitting == 0 && (bits == 8 || fitting * 2 * ((1 << bits) - 1) * 127 < 1 << 15));
    const Words ones = _mm256_set1_epi16(1);
    Words product = has_offset ? _mm256_set1_epi32(offset) : _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int first = 0; first < steps; first += fitting) {
        Words pairs = _mm256_setzero_si256();
#pragma GCC unroll 8
        for (int s = first; s < first + fitting; ++s) {
            std::int32_t four;
            std::memcpy(&four, numbers + s * stride, sizeof four);
            const Words row = _mm256_set1_epi32(four);
            if constexpr (bits == 8)
                pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(columns[s]), _mm256_sign_epi8(row, columns[s]));
            else
                pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(columns[s], row));
        }
        product = _mm256_add_epi32(product, _mm256_madd_epi16(pairs, ones));
    }
    return product;
}

// Floats of 8 bits: e4m3.

constexpr int kPerCodes = 1;             // numbers of a column that lie side by side
constexpr float kScaleOfE4M3 = 256.0f;  // what a number has to be multiplied with when it is loaded

// A byte as `load_e4m3` reads it.
PIPEZOO_INLINE std::uint8_t stored_e4m3(std::uint8_t number) { return number; }

// A number of each lane's column, as a float16: its exponent counts from 15, and not from 7.
PIPEZOO_INLINE void load_e4m3(const std::uint8_t* from, Vector (&steps)[1], const void*) {
    const __m128i numbers = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    const __m128i sign_and_rest = _mm_set1_epi16(std::int16_t(0xBF80));
    steps[0] = _mm256_cvtph_ps(_mm_and_si128(_mm_slli_epi16(numbers, 7), sign_and_rest));
}

}  // namespace pipezoo
