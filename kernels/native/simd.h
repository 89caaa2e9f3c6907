// Vectors of 16 float32 lanes, the two number types, and the one inner loop that all products share.
//
// "Interleaved" means: what the innermost step of a product reads of a matrix lies side by side. bfloat16 products
// take two numbers of the inner dimension per lane and step (VDPBF16PS), float32 products one (FMA), so that a step
// covers `Number<T>::per_step` of the inner dimension.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define PIPEZOO_INLINE [[gnu::always_inline]] inline

namespace pipezoo {

enum class bfloat16 : std::uint16_t {};

constexpr int kLanes = 16;       // float32 numbers in a vector
constexpr int kPanel = 32;       // columns that a tile of a product computes: two vectors
constexpr int kTileRows = 12;    // rows that a tile computes at most: 12 x 2 accumulators stay in registers
constexpr int kStepBytes = 128;   // that a step reads of 32 columns
constexpr int kAhead = 64;        // steps to prefetch: reaches into the next 4 KiB, where the hardware does not
constexpr float kLowest = -1e30f; // below every score, and finite: lowest - lowest is 0, not NaN

template <typename T>
struct Number;

template <>
struct Number<float> {
    static constexpr int per_step = 1;
};

template <>
struct Number<bfloat16> {
    static constexpr int per_step = 2;
};

PIPEZOO_INLINE __m512 load(const float* from) { return _mm512_loadu_ps(from); }

PIPEZOO_INLINE __m512 load(const bfloat16* from) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

PIPEZOO_INLINE __m512 load(const float* from, __mmask16 lanes) { return _mm512_maskz_loadu_ps(lanes, from); }

PIPEZOO_INLINE __m512 load(const bfloat16* from, __mmask16 lanes) {
    const __m256i half = _mm256_maskz_loadu_epi16(lanes, from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

PIPEZOO_INLINE void store(float* to, __m512 value) { _mm512_storeu_ps(to, value); }

PIPEZOO_INLINE void store(bfloat16* to, __m512 value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(value));
}

PIPEZOO_INLINE void store(float* to, __m512 value, __mmask16 lanes) { _mm512_mask_storeu_ps(to, lanes, value); }

PIPEZOO_INLINE void store(bfloat16* to, __m512 value, __mmask16 lanes) {
    _mm256_mask_storeu_epi16(to, lanes, (__m256i)_mm512_cvtneps_pbh(value));
}

// The first `count` lanes; all of them where count is 16 or more.
PIPEZOO_INLINE __mmask16 first_lanes(std::int64_t count) {
    return count >= kLanes ? __mmask16(0xFFFF) : count <= 0 ? __mmask16(0) : __mmask16((1u << count) - 1);
}

// NaN becomes 0, infinities the largest finite number.
PIPEZOO_INLINE __m512 finite(__m512 value) {
    const __m512 bound = _mm512_set1_ps(3.3895314e38f);  // the largest of bfloat16, which float32 has too
    const __mmask16 is_number = _mm512_cmp_ps_mask(value, value, _CMP_ORD_Q);
    const __m512 bounded = _mm512_min_ps(_mm512_max_ps(value, _mm512_sub_ps(_mm512_setzero_ps(), bound)), bound);
    return _mm512_maskz_mov_ps(is_number, bounded);
}

// e^x within 2 ulp for x in [-87, 88]; smaller x give e^-87.
PIPEZOO_INLINE __m512 exponential(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-87.0f), x);  // in this order NaN stays NaN
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);       // ln 2 in two parts (Cody and Waite)
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.0f / 720);  // Taylor: |r| <= 0.35, the next term is under 1.3e-7
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

// x · sigmoid(x), the activation that models call silu or swish.
PIPEZOO_INLINE __m512 silu(__m512 x) {
    const __m512 negated = _mm512_min_ps(_mm512_set1_ps(88.0f), _mm512_sub_ps(_mm512_setzero_ps(), x));
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), exponential(negated)));
}

// One step of a product: accumulator += (what `b` holds of 16 columns) x (what `a` holds of one row).
PIPEZOO_INLINE __m512 step(__m512 accumulator, __m512 b, const float* a) {
    return _mm512_fmadd_ps(b, _mm512_set1_ps(*a), accumulator);
}

PIPEZOO_INLINE __m512 step(__m512 accumulator, __m512 b, const bfloat16* a) {
    std::int32_t pair;
    std::memcpy(&pair, a, sizeof pair);
    return _mm512_dpbf16_ps(accumulator, (__m512bh)b, (__m512bh)_mm512_set1_epi32(pair));
}

// accumulator[i][v] += sum over steps of A[i] x B[:, 16 v .. 16 v + 15], for MR rows and 32 columns.
//
// Row i of A at step s lies at a + i * row_stride + s * step_stride, B at b + s * b_stride; strides count numbers. Each
// step also fetches `kStepBytes` of what is needed next, which begins at `ahead`.
template <int MR, typename T>
PIPEZOO_INLINE void multiply(__m512 (&accumulator)[MR][2], const T* a, std::ptrdiff_t row_stride,
                             std::ptrdiff_t step_stride, const T* b, std::ptrdiff_t b_stride, std::int64_t steps,
                             const T* ahead) {
    constexpr int vector = kLanes * Number<T>::per_step;
    static_assert(2 * vector * sizeof(T) == kStepBytes);
    for (std::int64_t s = 0; s < steps; ++s, a += step_stride, b += b_stride, ahead += 2 * vector) {
        const __m512 b0 = _mm512_loadu_ps(b), b1 = _mm512_loadu_ps(b + vector);
        _mm_prefetch(ahead, _MM_HINT_T0);
        _mm_prefetch(ahead + vector, _MM_HINT_T0);
#pragma GCC unroll 12
        for (int i = 0; i < MR; ++i) {
            accumulator[i][0] = step(accumulator[i][0], b0, a + i * row_stride);
            accumulator[i][1] = step(accumulator[i][1], b1, a + i * row_stride);
        }
    }
}

// Calls `work` with a compile-time number of rows, from 1 to `most`.
template <int most = kTileRows, typename Work>
PIPEZOO_INLINE void with_rows(int rows, Work&& work) {
    if constexpr (most > 1) {
        if (rows != most) return with_rows<most - 1>(rows, work);
    }
    work(std::integral_constant<int, most>{});
}

}  // namespace pipezoo
