#include "quantized.h"

#include <atomic>
#include <cmath>
#include <limits>
#include <new>
#include <vector>

#include "groups.h"
#include "tiles.h"

namespace pipezoo {
namespace {

constexpr float kLevels = 255;  // of scales and minima of 4 bits

std::uint16_t to_half(float value) {
    return std::uint16_t(_mm_extract_epi16(_mm_cvtps_ph(_mm_set_ss(value), _MM_FROUND_TO_NEAREST_INT), 0));
}

float from_half(std::uint16_t half) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half))); }

// `value`, or NaN if there is a NaN among the numbers: a damaged weight has to show in what is computed from it.
float unless_nan(float value, const float* numbers, std::int64_t count) {
    bool has_nan = false;
    for (std::int64_t k = 0; k < count; k += kLanes) has_nan |= any_nan(load(numbers + k), load(numbers + k));
    return has_nan ? std::numeric_limits<float>::quiet_NaN() : value;
}

// A rounded number as an integer, cut off below `low` and above `high`; of NaN `low`.
int integer(float rounded, float low, float high) { return int(rounded > low ? std::min(rounded, high) : low); }

// The scale of a group of 8 bits, and its numbers as small integers with `kAdded` added.
void round_group(const float* numbers, std::uint16_t& scale, std::uint8_t* rounded) {
    Vector magnitude = zeros();
    for (int k = 0; k < kGroup; k += kLanes) magnitude = larger(absolute(load(numbers + k)), magnitude);
    scale = to_half(unless_nan(largest(magnitude) / 127.0f, numbers, kGroup));
    const float step = from_half(scale), inverse = step > 0 ? 1.0f / step : 0.0f;
    for (int k = 0; k < kGroup; ++k)
        rounded[k] = std::uint8_t(integer(std::nearbyint(numbers[k] * inverse), -127, 127) + kAdded);
}

// Rounds numbers of one sign away from 0 to 8 bits of the greatest of them, which is `step` times 255; returns `step`.
float in_levels(const float* numbers, std::int64_t groups, std::uint8_t* rounded) {
    float greatest = 0;
    for (std::int64_t g = 0; g < groups; ++g)
        if (std::abs(numbers[g]) > std::abs(greatest)) greatest = numbers[g];
    const float step = greatest / kLevels;
    for (std::int64_t g = 0; g < groups; ++g)
        rounded[g] = step != 0 ? std::uint8_t(integer(std::ceil(numbers[g] / step), 0, kLevels)) : 0;
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
            Vector least = zeros();
            for (int k = 0; k < kGroup; k += kLanes) least = smaller(load(&numbers[g * kGroup + k]), least);
            lowest[g] = smallest(least);
        }
        minimum_step = in_levels(lowest.data(), groups, minima.data());
        for (std::int64_t g = 0; g < groups; ++g) {
            Vector most = load(&numbers[g * kGroup]);
            for (int k = kLanes; k < kGroup; k += kLanes) most = larger(load(&numbers[g * kGroup + k]), most);
            widths[g] = (largest(most) - float(minima[g]) * minimum_step) / 15.0f;
        }
        scale_step = in_levels(widths.data(), groups, scales.data());
        for (std::int64_t g = 0; g < groups; ++g) {
            const float scale = float(scales[g]) * scale_step, start = float(minima[g]) * minimum_step;
            const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
            for (std::int64_t k = g * kGroup; k < (g + 1) * kGroup; ++k)
                rounded[k] = std::uint8_t(integer(std::nearbyint((numbers[k] - start) * inverse), 0, 15));
        }
        scale_step = unless_nan(scale_step, numbers.data(), groups * kGroup);
    }
};

template <typename Row>
void pack_panel_of_8(std::uint8_t* to, std::int64_t columns, std::int64_t groups, const Row& row) {
    for (std::int64_t g = 0; g < groups; ++g, to += kGroupBytes<Packing::int8>)
        for (std::int64_t column = 0; column < columns; ++column) {
            alignas(64) float numbers[kGroup];
            const auto* from = row(column) + g * kGroup;
            for (int k = 0; k < kGroup; k += kLanes) store(numbers + k, load(from + k));
            std::uint16_t scale;
            std::uint8_t rounded[kGroup];
            round_group(numbers, scale, rounded);
            std::memcpy(to + column * 2, &scale, 2);
            for (int k = 0; k < kGroup; k += kPerInt)
                std::memcpy(to + kScaleBytes<Packing::int8> + (k / kPerInt * kPanel + column) * kPerInt, rounded + k, kPerInt);
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
            std::uint8_t* group = to + kHeadBytes<Packing::int4> + g * kGroupBytes<Packing::int4>;
            group[column] = rounded.scales[g], group[kPanel + column] = rounded.minima[g];
            for (int k = 0; k < kGroup; ++k)
                group[kScaleBytes<Packing::int4> + (k / kPerInt * kLanes + column % kLanes) * kPerInt + k % kPerInt] |=
                    std::uint8_t(rounded.rounded[g * kGroup + k] << (column < kLanes ? 0 : 4));
        }
    }
}

// The numbers that a column has in a group.
template <Packing packing>
void write_group(const std::uint8_t* head, const std::uint8_t* steps, const std::uint8_t* group, int column,
                 float* numbers) {
    alignas(64) std::uint8_t stored[kSteps][kPanel * kPerInt];
    each_step<kSteps>([&](auto s) {
        constexpr int step = decltype(s)::value;
        store_bytes(stored[step], load_step<packing, 0, step>(group + kScaleBytes<packing>));
        store_bytes(stored[step] + kLanes * kPerInt, load_step<packing, 1, step>(group + kScaleBytes<packing>));
    });
    alignas(64) float scales[kParts<packing>][kLanes], minima[kLanes];
    each_step<kParts<packing>>([&](auto p) {
        Vector of_part, lowest;
        load_scales<packing, decltype(p)::value>(head, steps, group, column / kLanes * kLanes, of_part, lowest);
        store(scales[p], of_part), store(minima, lowest);
    });
    for (int k = 0; k < kGroup; ++k) {
        const int q = int(stored[k / kPerInt][column * kPerInt + k % kPerInt]) - kOffset<packing>;
        const int number = kBits<packing> == 8 ? std::int8_t(q) : q;
        numbers[k] = scales[k * kParts<packing> / kGroup][column % kLanes] * float(number) + minima[column % kLanes];
    }
}

}  // namespace

template <typename T, Packing packing>
void pack_quantized(const T* weight, std::uint8_t* packed, std::int64_t out, std::int64_t in, Form form) {
    const std::int64_t panels = (out + kPanel - 1) / kPanel, groups = in / kGroup;
    std::atomic<bool> is_short{false};
#pragma omp parallel for
    for (std::int64_t panel = 0; panel < panels; ++panel) {
        std::uint8_t* to = packed + panel * panel_bytes<packing>(groups);
        std::memset(to, 0, panel_bytes<packing>(groups));
        const std::int64_t columns = std::min<std::int64_t>(kPanel, out - panel * kPanel);
        const auto row = [=](std::int64_t column) { return weight + row_of(panel * kPanel + column, out, form) * in; };
        try {
            if constexpr (packing == Packing::int8)
                pack_panel_of_8(to, columns, groups, row);
            else
                pack_panel_of_4(to, columns, groups, row);
        } catch (const std::bad_alloc&) {
            is_short = true;  // no exception may leave a thread of the region
        }
    }
    if (is_short) throw std::bad_alloc();
}

template <typename T, Packing packing>
void linear_quantized(const T* x, const std::uint8_t* packed, const T* bias, void* y, std::int64_t rows, std::int64_t in,
                      std::int64_t out, Form form, Activation activation) {
    const std::int64_t panels = (out + kPanel - 1) / kPanel, groups = in / kGroup;
    for_panels<Group>(
        rows, kRows, groups, panels,
        [&](Tile tile, Group* rounded) {
            const T* first = x + tile.first_row * in;
            round_rows<packing>([=](int row) { return first + row * in; }, in, tile.rows, rounded);
        },
        [&](std::int64_t panel, std::int64_t next_panel, Tile tile, const Group* rounded) {
            const std::int64_t column = panel * kPanel;
            const std::uint8_t* b = packed + panel * panel_bytes<packing>(groups);
            const std::uint8_t* next = next_panel < panels ? packed + next_panel * panel_bytes<packing>(groups) : b;
            Vector first, second;
            read_panel(bias ? bias + column : nullptr, out - column, first, second);
            with_rows<kRows>(tile.rows, [&](auto count) {
                constexpr int MR = decltype(count)::value;
                Vector sum[MR][2];
#pragma GCC unroll 8
                for (int i = 0; i < MR; ++i) sum[i][0] = first, sum[i][1] = second;
                multiply_groups<MR, packing>(sum, rounded, b, groups, next);
#pragma GCC unroll 8
                for (int i = 0; i < MR; ++i)
                    write_product<T>(y, tile.first_row + i, panel, out, form, activation, sum[i][0], sum[i][1]);
            });
        });
}

template <typename T, Packing packing>
void packed_rows_quantized(const std::int64_t* tokens, const std::uint8_t* packed, T* y, std::int64_t rows,
                           std::int64_t in, std::int64_t out) {
    const std::int64_t groups = in / kGroup;
    on_team_each(rows, rows * in, [&](std::int64_t row) {
        if (!is_index(tokens[row], out)) return write_nan(y + row * in, in);
        const int column = int(tokens[row] % kPanel);
        const std::uint8_t* head = packed + tokens[row] / kPanel * panel_bytes<packing>(groups);
        for (std::int64_t g = 0; g < groups; ++g) {
            const std::int64_t block = g / kBlockGroups<packing>, in_block = g % kBlockGroups<packing>;
            const std::uint8_t* steps = head + kHeadBytes<packing> + block * kBlockBytesOf<packing>;
            const std::uint8_t* group = steps + kStepBytes<packing> + in_block * kGroupBytes<packing>;
            alignas(64) float numbers[kGroup];
            write_group<packing>(head, steps, group, column, numbers);
            for (int k = 0; k < kGroup; k += kLanes) store(y + row * in + g * kGroup + k, load(numbers + k));
        }
    });
}

#define PIPEZOO_PACK(T, packing) \
    template void pack_quantized<T, packing>(const T*, std::uint8_t*, std::int64_t, std::int64_t, Form);
#define PIPEZOO_COMPUTE(T, packing)                                                                                   \
    template void linear_quantized<T, packing>(const T*, const std::uint8_t*, const T*, void*, std::int64_t,          \
                                               std::int64_t, std::int64_t, Form, Activation);                         \
    template void packed_rows_quantized<T, packing>(const std::int64_t*, const std::uint8_t*, T*, std::int64_t,       \
                                                    std::int64_t, std::int64_t);
#define PIPEZOO_INSTANTIATE(T)                                                                       \
    PIPEZOO_PACK(T, Packing::int8) PIPEZOO_PACK(T, Packing::int4)                                    \
    PIPEZOO_COMPUTE(T, Packing::int8) PIPEZOO_COMPUTE(T, Packing::int4)                              \
    PIPEZOO_COMPUTE(T, Packing::q4_0) PIPEZOO_COMPUTE(T, Packing::q4_1)                              \
    PIPEZOO_COMPUTE(T, Packing::q4_k) PIPEZOO_COMPUTE(T, Packing::q5_k) PIPEZOO_COMPUTE(T, Packing::q6_k)  \
    PIPEZOO_COMPUTE(T, Packing::affine4_32) PIPEZOO_COMPUTE(T, Packing::affine4_64)                  \
    PIPEZOO_COMPUTE(T, Packing::affine4_128) PIPEZOO_COMPUTE(T, Packing::affine8_32)                 \
    PIPEZOO_COMPUTE(T, Packing::affine8_64)
PIPEZOO_INSTANTIATE(float)
PIPEZOO_INSTANTIATE(bfloat16)

}  // namespace pipezoo
