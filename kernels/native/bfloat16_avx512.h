// Products in bfloat16 with AVX-512, with its instructions for them and without.
//
// Two numbers of the inner dimension lie in a lane. Some CPUs multiply them as they are (VDPBF16PS). On the others products are
// of float32: the left matrix is widened when a tile is prepared, and a step widens what it reads of the right one, once for
// all rows of a tile.
#pragma once

namespace pipezoo {

PIPEZOO_INLINE Vector widened(__m256i numbers) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(numbers), 16));
}

// The first number of each lane, and the second.
PIPEZOO_INLINE Vector lower_numbers(Words pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }

PIPEZOO_INLINE Vector upper_numbers(Words pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xFFFF0000)));
}

#ifdef __AVX512BF16__

constexpr bool kRowInPairs = false;  // one row by one panel keeps up with the memory

template <typename T>
using Left = T;  // what a product reads of its left matrix

template <typename T>
using Right = Vector;  // what a step of a product has of its right matrix

PIPEZOO_INLINE __m256i rounded(Vector value) { return (__m256i)_mm512_cvtneps_pbh(value); }
PIPEZOO_INLINE Vector right_of(Words pairs) { return _mm512_castsi512_ps(pairs); }

PIPEZOO_INLINE Vector step(Vector accumulator, Vector b, const bfloat16* a) {
    std::int32_t pair;
    std::memcpy(&pair, a, sizeof pair);
    return _mm512_dpbf16_ps(accumulator, (__m512bh)b, (__m512bh)_mm512_set1_epi32(pair));
}

#else

constexpr bool kRowInPairs = true;  // one row is multiplied by two panels at a time: its sums are too short to be alone

template <typename T>
using Left = float;

struct Pairs {
    Vector lower, upper;
};

template <typename T>
using Right = std::conditional_t<std::is_same_v<T, float>, Vector, Pairs>;

PIPEZOO_INLINE __m256i rounded(Vector value) {
    const Words bits = _mm512_castps_si512(value);
    const Words last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));  // ties go to even ones
    const Words nearest = _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7FFF)));
    const Mask is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    const Words kept = _mm512_mask_or_epi32(nearest, is_nan, bits, _mm512_set1_epi32(0x00400000));  // it stays NaN
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
}

PIPEZOO_INLINE Pairs right_of(Words pairs) { return {lower_numbers(pairs), upper_numbers(pairs)}; }

PIPEZOO_INLINE Vector step(Vector accumulator, Pairs b, const float* a) {
    accumulator = _mm512_fmadd_ps(b.lower, _mm512_set1_ps(a[0]), accumulator);
    return _mm512_fmadd_ps(b.upper, _mm512_set1_ps(a[1]), accumulator);
}

#endif

PIPEZOO_INLINE Right<bfloat16> load_right(const bfloat16* from) { return right_of(_mm512_loadu_si512(from)); }

}  // namespace pipezoo
