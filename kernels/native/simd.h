// Vectors of float32 lanes, the two number types, and the one inner loop that all products share.
//
// Everything is compiled once for each kind of CPU: with AVX-512 a vector has 16 lanes, with AVX2 it has 8. What only
// some of them have an instruction for is in simd_avx512.h, bfloat16_avx512.h and simd_avx2.h, under the same names.
//
// "Interleaved" means: what the innermost step of a product reads of a matrix lies side by side. A step takes
// `kPerStep<T>` numbers of the inner dimension per lane.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define PIPEZOO_INLINE [[gnu::always_inline]] inline

namespace pipezoo {
enum class bfloat16 : std::uint16_t {};
}

#ifdef __AVX512F__
#include "simd_avx512.h"
#else
#include "simd_avx2.h"
#endif

namespace pipezoo {

constexpr int kPanel = 2 * kLanes;  // columns that a tile of a product computes: two vectors
constexpr float kLowest = -1e30f;   // below every score, and finite: lowest - lowest is 0, not NaN

// NaN becomes 0, infinities the largest finite number.
PIPEZOO_INLINE Vector finite(Vector value) {
    const Vector bound = all(3.3895314e38f);  // the largest of bfloat16, which float32 has too
    return where(is_number(value), smaller(larger(value, zeros() - bound), bound));
}

// Whether an index is one of 0 to count - 1.
PIPEZOO_INLINE bool is_index(std::int64_t index, std::int64_t count) {
    return std::uint64_t(index) < std::uint64_t(count);
}

// Writes NaN: a row that was to be looked up and is none has to show in what is computed from it.
template <typename T>
void write_nan(T* to, std::int64_t size) {
    const Vector nan = all(__builtin_nanf(""));
    for (std::int64_t i = 0; i < size; i += kLanes) store(to + i, nan, first_lanes(size - i));
}

// e^x within 2 ulp for x in [-87, 88]; smaller x give e^-87.
PIPEZOO_INLINE Vector exponential(Vector x) {
    x = larger(all(-87.0f), x);  // in this order NaN stays NaN
    const Vector n = nearest(x * all(1.44269504f));
    Vector r = subtract_product(x, n, all(0.693359375f));  // ln 2 in two parts (Cody and Waite)
    r = subtract_product(r, n, all(-2.12194440e-4f));
    Vector p = all(1.0f / 720);  // Taylor: |r| <= 0.35, the next term is under 1.3e-7
    p = add_product(all(1.0f / 120), p, r);
    p = add_product(all(1.0f / 24), p, r);
    p = add_product(all(1.0f / 6), p, r);
    p = add_product(all(0.5f), p, r);
    p = add_product(all(1.0f), p, r);
    p = add_product(all(1.0f), p, r);
    return times_power_of_two(p, n);
}

// accumulator[i][v] += sum over steps of A[i] x B[:, kLanes v .. kLanes (v + 1) - 1], for MR rows and kPanel columns.
//
// Row i of A at step s lies at a + i * row_stride + s * step_stride, B at b + s * b_stride; strides count numbers. Each
// step also fetches what is needed later, as much as it reads of B, from ahead + s * ahead_stride on.
template <_mm_hint hint, int MR, typename T>
PIPEZOO_INLINE void multiply(Vector (&accumulator)[MR][2], const Left<T>* a, std::ptrdiff_t row_stride,
                             std::ptrdiff_t step_stride, const T* b, std::ptrdiff_t b_stride, std::int64_t steps,
                             const T* ahead, std::ptrdiff_t ahead_stride) {
    constexpr int vector = kLanes * kPerStep<T>, line = 64 / sizeof(T);
    for (std::int64_t s = 0; s < steps; ++s, a += step_stride, b += b_stride, ahead += ahead_stride) {
        const Right<T> b0 = load_right(b), b1 = load_right(b + vector);
#pragma GCC unroll 2
        for (int i = 0; i < 2 * vector; i += line) _mm_prefetch(reinterpret_cast<const char*>(ahead + i), hint);
#pragma GCC unroll 12
        for (int i = 0; i < MR; ++i) {
            accumulator[i][0] = step(accumulator[i][0], b0, a + i * row_stride);
            accumulator[i][1] = step(accumulator[i][1], b1, a + i * row_stride);
        }
    }
}

// Calls `work` with a compile-time number of rows, from 1 to `most`.
template <int most, typename Work>
PIPEZOO_INLINE void with_rows(int rows, Work&& work) {
    if constexpr (most > 1) {
        if (rows != most) return with_rows<most - 1>(rows, work);
    }
    work(std::integral_constant<int, most>{});
}

// Calls `work` with 1, 2, ... as compile-time numbers.
template <int most, int number = 1, typename Work>
constexpr void each_count(Work&& work) {
    work(std::integral_constant<int, number>{});
    if constexpr (number < most) each_count<most, number + 1>(work);
}

}  // namespace pipezoo
