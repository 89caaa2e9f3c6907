#include "quantized.h"

#include <cmath>
#include <limits>
#include <vector>

#include "tiles.h"

namespace pipezoo {
namespace {

constexpr int kGroup = 32;                // numbers that share a scale
constexpr int kPerInt = 4;                // numbers of 8 bits in a lane of 32
constexpr int kSteps = kGroup / kPerInt;  // per group
constexpr int kRows = 8;                  // of a tile: sums of 8 x 32 stay in registers, and weights of 16 columns

constexpr float kLevels = 255;            // of scales and minima of 4 bits

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
    std::int32_t offset[kRows];  // -128 · sum of values, because the weights are stored with 128 added
};

template <typename T>
void round_rows(const T* x, std::int64_t in, int rows, Group* groups) {
    for (std::int64_t g = 0; g < in / kGroup; ++g) {
        for (int i = 0; i < rows; ++i) {
            const T* from = x + i * in + g * kGroup;
            const __m512 first = load(from), second = load(from + kLanes);
            const __m512 magnitude = _mm512_max_ps(_mm512_abs_ps(first), _mm512_abs_ps(second));
            float scale = _mm512_reduce_max_ps(magnitude) / 127.0f;
            if (_mm512_cmp_ps_mask(first, second, _CMP_UNORD_Q)) scale = std::numeric_limits<float>::quiet_NaN();
            const __m512 inverse = _mm512_set1_ps(scale > 0 ? 1.0f / scale : 0.0f);
            const __m512i low = _mm512_cvtps_epi32(_mm512_mul_ps(first, inverse));
            const __m512i high = _mm512_cvtps_epi32(_mm512_mul_ps(second, inverse));
            const std::int32_t sum = _mm512_reduce_add_epi32(_mm512_add_epi32(low, high));
            alignas(16) std::int8_t rounded[kGroup];
            _mm_store_si128(reinterpret_cast<__m128i*>(rounded), _mm512_cvtsepi32_epi8(low));
            _mm_store_si128(reinterpret_cast<__m128i*>(rounded + kLanes), _mm512_cvtsepi32_epi8(high));
            for (int s = 0; s < kSteps; ++s) std::memcpy(groups[g].values[s][i], rounded + s * kPerInt, kPerInt);
            groups[g].scale[i] = scale;
            groups[g].total[i] = scale * float(sum);
            groups[g].offset[i] = -128 * sum;
        }
    }
}

PIPEZOO_INLINE __m512 load_halves(const std::uint8_t* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

PIPEZOO_INLINE __m512 load_bytes(const std::uint8_t* from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}

// Scales and minima of 16 columns of a panel, from `column` on.
template <int bits>
PIPEZOO_INLINE void load_scales(const float* head, const std::uint8_t* group, int column, __m512& scales,
                                __m512& minima) {
    if constexpr (bits == 8) {
        scales = load_halves(group + column * 2), minima = _mm512_setzero_ps();
    } else {
        scales = _mm512_mul_ps(load_bytes(group + column), load(head + column));
        minima = _mm512_mul_ps(load_bytes(group + kPanel + column), load(head + kPanel + column));
    }
}

// 4 numbers of each of 16 columns of a panel, the first 16 or the last.
template <int bits, int half>
PIPEZOO_INLINE __m512i load_step(const std::uint8_t* from, int step) {
    if constexpr (bits == 8) return _mm512_loadu_si512(from + step * kPanel * kPerInt + half * 64);
    const __m512i both = _mm512_loadu_si512(from + step * 64);
    return _mm512_and_si512(half ? _mm512_srli_epi16(both, 4) : both, _mm512_set1_epi8(0x0F));
}

template <int MR, int bits, int half>
PIPEZOO_INLINE void multiply_half(__m512 (&sum)[MR][2], const Group& a, const float* head, const std::uint8_t* b) {
    __m512i weights[kSteps];
#pragma GCC unroll 8
    for (int s = 0; s < kSteps; ++s) weights[s] = load_step<bits, half>(b + kScaleBytes, s);
    __m512 scales, minima;
    load_scales<bits>(head, b, half * kLanes, scales, minima);
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
        __m512i product = bits == 8 ? _mm512_set1_epi32(a.offset[i]) : _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int s = 0; s < kSteps; ++s) {
            std::int32_t four;
            std::memcpy(&four, a.values[s][i], sizeof four);
            product = _mm512_dpbusd_epi32(product, weights[s], _mm512_set1_epi32(four));
        }
        const __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(a.scale[i]));
        sum[i][half] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), scale, sum[i][half]);
        if constexpr (bits == 4) sum[i][half] = _mm512_fmadd_ps(minima, _mm512_set1_ps(a.total[i]), sum[i][half]);
    }
}

template <int MR, int bits>
PIPEZOO_INLINE void multiply_groups(__m512 (&sum)[MR][2], const Group* a, const std::uint8_t* b, std::int64_t groups) {
    const float* head = reinterpret_cast<const float*>(b);
    b += kHeadBytes<bits>;
    constexpr int kAhead = 64 / bits;  // groups to prefetch, about 8 KiB
    for (std::int64_t g = 0; g < groups; ++g, ++a, b += kGroupBytes<bits>) {
        for (int line = 0; line < kGroupBytes<bits>; line += 64)
            _mm_prefetch(b + kAhead * kGroupBytes<bits> + line, _MM_HINT_T0);
        multiply_half<MR, bits, 0>(sum, *a, head, b);
        asm volatile("" ::: "memory");  // weights are better loaded again than kept in registers that sums need
        multiply_half<MR, bits, 1>(sum, *a, head, b);
    }
}

std::uint16_t to_half(float value) {
    return std::uint16_t(_mm_extract_epi16(_mm_cvtps_ph(_mm_set_ss(value), _MM_FROUND_TO_NEAREST_INT), 0));
}

float from_half(std::uint16_t half) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half))); }

// The scale of a group of 8 bits, and its numbers as small integers with 128 added.
void round_group(const float* numbers, std::uint16_t& scale, std::uint8_t* rounded) {
    const __m512 magnitude = _mm512_max_ps(_mm512_abs_ps(load(numbers)), _mm512_abs_ps(load(numbers + kLanes)));
    scale = to_half(_mm512_reduce_max_ps(magnitude) / 127.0f);
    const float step = from_half(scale), inverse = step > 0 ? 1.0f / step : 0.0f;
    for (int k = 0; k < kGroup; ++k)
        rounded[k] = std::uint8_t(std::clamp(int(std::nearbyint(numbers[k] * inverse)), -127, 127) + 128);
}

// Rounds numbers of one sign away from 0 to 8 bits of the greatest of them, which is `step` times 255; returns `step`.
float in_levels(const float* numbers, std::int64_t groups, std::uint8_t* rounded) {
    float greatest = 0;
    for (std::int64_t g = 0; g < groups; ++g)
        if (std::abs(numbers[g]) > std::abs(greatest)) greatest = numbers[g];
    const float step = greatest / kLevels;
    for (std::int64_t g = 0; g < groups; ++g)
        rounded[g] = step != 0 ? std::uint8_t(std::min(std::ceil(numbers[g] / step), kLevels)) : 0;
    return step;
}

// A column's groups of 4 bits: numbers, scales and minima as small integers, and the steps of the latter two.
struct Column {
    std::vector<float> numbers, lowest, widths;
    std::vector<std::uint8_t> rounded, scales, minima;
    float scale_step, minimum_step;

    explicit Column(std::int64_t groups)
        : numbers(groups * kGroup), lowest(groups), widths(groups), rounded(groups * kGroup), scales(groups),
          minima(groups) {}

    template <typename T>
    void round(const T* from) {
        const std::int64_t groups = std::int64_t(scales.size());
        for (std::int64_t k = 0; k < groups * kGroup; k += kLanes) store(&numbers[k], load(from + k));
        for (std::int64_t g = 0; g < groups; ++g) {
            const __m512 both = _mm512_min_ps(load(&numbers[g * kGroup]), load(&numbers[g * kGroup + kLanes]));
            lowest[g] = std::min(0.0f, _mm512_reduce_min_ps(both));
        }
        minimum_step = in_levels(lowest.data(), groups, minima.data());
        for (std::int64_t g = 0; g < groups; ++g) {
            const __m512 both = _mm512_max_ps(load(&numbers[g * kGroup]), load(&numbers[g * kGroup + kLanes]));
            widths[g] = (_mm512_reduce_max_ps(both) - float(minima[g]) * minimum_step) / 15.0f;
        }
        scale_step = in_levels(widths.data(), groups, scales.data());
        for (std::int64_t g = 0; g < groups; ++g) {
            const float scale = float(scales[g]) * scale_step, start = float(minima[g]) * minimum_step;
            const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
            for (std::int64_t k = g * kGroup; k < (g + 1) * kGroup; ++k)
                rounded[k] = std::uint8_t(std::clamp(int(std::nearbyint((numbers[k] - start) * inverse)), 0, 15));
        }
    }
};

template <typename Row>
void pack_panel_of_8(std::uint8_t* to, std::int64_t columns, std::int64_t groups, const Row& row) {
    for (std::int64_t g = 0; g < groups; ++g, to += kGroupBytes<8>)
        for (std::int64_t column = 0; column < columns; ++column) {
            alignas(64) float numbers[kGroup];
            const auto* from = row(column) + g * kGroup;
            store(numbers, load(from)), store(numbers + kLanes, load(from + kLanes));
            std::uint16_t scale;
            std::uint8_t rounded[kGroup];
            round_group(numbers, scale, rounded);
            std::memcpy(to + column * 2, &scale, 2);
            for (int k = 0; k < kGroup; k += kPerInt)
                std::memcpy(to + kScaleBytes + (k / kPerInt * kPanel + column) * kPerInt, rounded + k, kPerInt);
        }
}

template <typename Row>
void pack_panel_of_4(std::uint8_t* to, std::int64_t columns, std::int64_t groups, const Row& row) {
    Column rounded(groups);
    for (std::int64_t column = 0; column < columns; ++column) {
        rounded.round(row(column));
        std::memcpy(to + column * sizeof(float), &rounded.scale_step, sizeof(float));
        std::memcpy(to + (kPanel + column) * sizeof(float), &rounded.minimum_step, sizeof(float));
        for (std::int64_t g = 0; g < groups; ++g) {
            std::uint8_t* group = to + kHeadBytes<4> + g * kGroupBytes<4>;
            group[column] = rounded.scales[g], group[kPanel + column] = rounded.minima[g];
            for (int k = 0; k < kGroup; ++k)
                group[kScaleBytes + (k / kPerInt * kLanes + column % kLanes) * kPerInt + k % kPerInt] |=
                    std::uint8_t(rounded.rounded[g * kGroup + k] << (column < kLanes ? 0 : 4));
        }
    }
}

}  // namespace

template <typename T, int bits>
void pack_quantized(const T* weight, std::uint8_t* packed, std::int64_t out, std::int64_t in, Form form) {
    const std::int64_t panels = (out + kPanel - 1) / kPanel, groups = in / kGroup;
#pragma omp parallel for
    for (std::int64_t panel = 0; panel < panels; ++panel) {
        std::uint8_t* to = packed + panel * panel_bytes<bits>(groups);
        std::memset(to, 0, panel_bytes<bits>(groups));
        const std::int64_t columns = std::min<std::int64_t>(kPanel, out - panel * kPanel);
        const auto row = [=](std::int64_t column) { return weight + row_of(panel * kPanel + column, out, form) * in; };
        if constexpr (bits == 8)
            pack_panel_of_8(to, columns, groups, row);
        else
            pack_panel_of_4(to, columns, groups, row);
    }
}

template <typename T, int bits>
void linear_quantized(const T* x, const std::uint8_t* packed, const T* bias, void* y, std::int64_t rows, std::int64_t in,
                      std::int64_t out, Form form) {
    const std::int64_t panels = (out + kPanel - 1) / kPanel, groups = in / kGroup;
    for_panels<Group>(
        rows, kRows, groups, panels,
        [&](Tile tile, Group* rounded) { round_rows(x + tile.first_row * in, in, tile.rows, rounded); },
        [&](std::int64_t panel, Tile tile, const Group* rounded) {
            const std::int64_t column = panel * kPanel;
            __m512 first, second;
            read_panel(bias ? bias + column : nullptr, out - column, first, second);
            with_rows<kRows>(tile.rows, [&](auto count) {
                constexpr int MR = decltype(count)::value;
                __m512 sum[MR][2];
#pragma GCC unroll 8
                for (int i = 0; i < MR; ++i) sum[i][0] = first, sum[i][1] = second;
                multiply_groups<MR, bits>(sum, rounded, packed + panel * panel_bytes<bits>(groups), groups);
#pragma GCC unroll 8
                for (int i = 0; i < MR; ++i)
                    write_product<T>(y, tile.first_row + i, panel, out, form, sum[i][0], sum[i][1]);
            });
        });
}

template <typename T, int bits>
void packed_rows_quantized(const std::int64_t* tokens, const std::uint8_t* packed, T* y, std::int64_t rows,
                           std::int64_t in) {
    const std::int64_t groups = in / kGroup;
#pragma omp parallel for if (rows > 8)
    for (std::int64_t row = 0; row < rows; ++row)
        for (std::int64_t g = 0; g < groups; ++g) {
            const int column = int(tokens[row] % kPanel), half = column / kLanes * kLanes;
            const std::uint8_t* panel = packed + tokens[row] / kPanel * panel_bytes<bits>(groups);
            const std::uint8_t* from = panel + kHeadBytes<bits> + g * kGroupBytes<bits>;
            __m512 some_scales, some_minima;
            load_scales<bits>(reinterpret_cast<const float*>(panel), from, half, some_scales, some_minima);
            alignas(64) float scales[kLanes], minima[kLanes], numbers[kGroup];
            store(scales, some_scales), store(minima, some_minima);
            for (int k = 0; k < kGroup; ++k) {
                alignas(64) std::uint8_t step[kPanel * kPerInt];
                _mm512_store_si512(step, load_step<bits, 0>(from + kScaleBytes, k / kPerInt));
                _mm512_store_si512(step + 64, load_step<bits, 1>(from + kScaleBytes, k / kPerInt));
                const int q = step[column * kPerInt + k % kPerInt] - (bits == 8 ? 128 : 0);
                numbers[k] = scales[column - half] * float(q) + minima[column - half];
            }
            store(y + row * in + g * kGroup, load(numbers));
            store(y + row * in + g * kGroup + kLanes, load(numbers + kLanes));
        }
}

#define PIPEZOO_INSTANTIATE(T, bits)                                                                            \
    template void pack_quantized<T, bits>(const T*, std::uint8_t*, std::int64_t, std::int64_t, Form);           \
    template void linear_quantized<T, bits>(const T*, const std::uint8_t*, const T*, void*, std::int64_t, std::int64_t, \
                                            std::int64_t, Form);                                                 \
    template void packed_rows_quantized<T, bits>(const std::int64_t*, const std::uint8_t*, T*, std::int64_t,         \
                                                 std::int64_t);
PIPEZOO_INSTANTIATE(float, 8)
PIPEZOO_INSTANTIATE(float, 4)
PIPEZOO_INSTANTIATE(bfloat16, 8)
PIPEZOO_INSTANTIATE(bfloat16, 4)

}  // namespace pipezoo
