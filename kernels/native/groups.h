// Products with weights of 8 or 4 bits, packed as quantized.h says: rows rounded to 8 bits, and a tile of them by a panel.
#pragma once

#include <cstdint>
#include <limits>

#include "simd.h"

namespace pipezoo {

constexpr int kGroup = 32;                // numbers that share a scale
constexpr int kPerInt = 4;                // numbers of 8 bits in a lane of 32
constexpr int kSteps = kGroup / kPerInt;  // per group
constexpr int kRows = 8;                  // of a tile: with AVX-512 their sums stay in registers, and half a panel's weights
constexpr int kVectors = kGroup / kLanes;

constexpr std::int64_t kScaleBytes = kPanel * 2;  // of a group; with 4 bits minima included

template <int bits>
constexpr std::int64_t kGroupBytes = kScaleBytes + kPanel * kGroup * bits / 8;

template <int bits>
constexpr std::int64_t kHeadBytes = bits == 4 ? 2 * kPanel * sizeof(float) : 0;

template <int bits>
std::int64_t panel_bytes(std::int64_t groups) {
    return kHeadBytes<bits> + groups * kGroupBytes<bits>;
}

// Rows of x, rounded to 8 bits: what a tile's products read, group by group.
struct Group {
    std::int8_t values[kSteps][kRows][kPerInt];
    float scale[kRows];
    float total[kRows];         // scale · sum of values, for the weights' minima
    std::int32_t offset[kRows];  // -kAdded · sum of values, because the weights are stored with as much added
};

// `row(i)` is where row i lies.
template <typename Row>
void round_rows(const Row& row, std::int64_t in, int rows, Group* groups) {
    for (std::int64_t g = 0; g < in / kGroup; ++g) {
        for (int i = 0; i < rows; ++i) {
            const auto* from = row(i) + g * kGroup;
            Vector numbers[kVectors], magnitude = zeros();
            bool has_nan = false;
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; v += 2) {
                numbers[v] = load(from + v * kLanes), numbers[v + 1] = load(from + (v + 1) * kLanes);
                magnitude = larger(magnitude, larger(absolute(numbers[v]), absolute(numbers[v + 1])));
                has_nan |= any_nan(numbers[v], numbers[v + 1]);
            }
            float scale = largest(magnitude) / 127.0f;
            if (has_nan) scale = std::numeric_limits<float>::quiet_NaN();
            const Vector inverse = all(scale > 0 ? 1.0f / scale : 0.0f);
            alignas(64) std::int8_t rounded[kGroup];
            Words total = no_words();
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
                const Words integers = to_integers(numbers[v] * inverse);
                total = add_integers(total, integers);
                store_int8(rounded + v * kLanes, integers);
            }
            const std::int32_t sum = sum_of_integers(total);
            for (int s = 0; s < kSteps; ++s) std::memcpy(groups[g].values[s][i], rounded + s * kPerInt, kPerInt);
            groups[g].scale[i] = scale;
            groups[g].total[i] = scale * float(sum);
            groups[g].offset[i] = std::int32_t(-kAdded * std::int64_t(sum));  // of NaN the sum is any number
        }
    }
}

// Scales and minima of a vector of a panel's columns, from `column` on.
template <int bits>
PIPEZOO_INLINE void load_scales(const float* head, const std::uint8_t* group, int column, Vector& scales,
                                Vector& minima) {
    if constexpr (bits == 8) {
        scales = load_float16(group + column * 2), minima = zeros();
    } else {
        scales = load_uint8(group + column) * load(head + column);
        minima = load_uint8(group + kPanel + column) * load(head + kPanel + column);
    }
}

// 4 numbers of each column of a panel's first half, or of its second.
template <int bits, int half>
PIPEZOO_INLINE Words load_step(const std::uint8_t* from, int step) {
    constexpr int vector = kLanes * kPerInt;
    if constexpr (bits == 8) return load_bytes(from + step * 2 * vector + half * vector);
    const Words both = load_bytes(from + step * vector);
    return half ? high_nibbles(both) : low_nibbles(both);
}

template <int MR, int bits, int half>
PIPEZOO_INLINE void multiply_half(Vector (&sum)[MR][2], const Group& a, const float* head, const std::uint8_t* b) {
    Words weights[kSteps];
#pragma GCC unroll 8
    for (int s = 0; s < kSteps; ++s) weights[s] = load_step<bits, half>(b + kScaleBytes, s);
    Vector scales, minima;
    load_scales<bits>(head, b, half * kLanes, scales, minima);
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
        const Words product = multiply_bytes<bits>(weights, a.values[0][i], kRows * kPerInt, a.offset[i]);
        sum[i][half] = add_product(sum[i][half], to_floats(product), scales * all(a.scale[i]));
        if constexpr (bits == 4) sum[i][half] = add_product(sum[i][half], minima, all(a.total[i]));
    }
}

// sum += a tile of MR rows x a panel. Fetches early what it reads, and at the panel's end what the next one begins with.
template <int MR, int bits>
PIPEZOO_INLINE void multiply_groups(Vector (&sum)[MR][2], const Group* a, const std::uint8_t* b, std::int64_t groups,
                                    const std::uint8_t* next) {
    const float* head = reinterpret_cast<const float*>(b);
    b += kHeadBytes<bits>;
    constexpr int kAhead = 64 / bits;  // groups to prefetch, about 8 KiB
    for (std::int64_t g = 0; g < groups; ++g, ++a, b += kGroupBytes<bits>) {
        const std::uint8_t* ahead = b + kAhead * kGroupBytes<bits>;
        if (g + kAhead >= groups) ahead = next, next += kGroupBytes<bits>;
        for (int line = 0; line < kGroupBytes<bits>; line += 64) _mm_prefetch(ahead + line, _MM_HINT_T0);
        multiply_half<MR, bits, 0>(sum, *a, head, b);
        asm volatile("" ::: "memory");  // weights are better loaded again than kept in registers that sums need
        multiply_half<MR, bits, 1>(sum, *a, head, b);
    }
}

}  // namespace pipezoo
