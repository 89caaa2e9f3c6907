#include "quantized.h"

#include <atomic>
#include <cmath>
#include <limits>
#include <new>
#include <vector>

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

using WriteGroup = void (*)(const std::uint8_t* panel, std::int64_t g, int column, float* numbers);

// The numbers that a column of a panel has in a group.
template <Packing packing>
void write_group(const std::uint8_t* panel, std::int64_t g, int column, float* numbers) {
    const std::int64_t block = g / kBlockGroups<packing>, in_block = g % kBlockGroups<packing>;
    const std::uint8_t* steps = panel + kHeadBytes<packing> + block * kBlockBytesOf<packing>;
    const std::uint8_t* group = steps + kStepBytes<packing> + in_block * kGroupBytes<packing>;
    alignas(64) std::uint8_t stored[kSteps][kPanel * kPerInt];
    each_step<kSteps>([&](auto s) {
        constexpr int step = decltype(s)::value;
        store_bytes(stored[step], load_step<packing, 0, step>(group + kScaleBytes<packing>));
        store_bytes(stored[step] + kLanes * kPerInt, load_step<packing, 1, step>(group + kScaleBytes<packing>));
    });
    alignas(64) float scales[kParts<packing>][kLanes], minima[kLanes];
    each_step<kParts<packing>>([&](auto p) {
        Vector of_part, lowest;
        load_scales<packing, decltype(p)::value>(panel, steps, group, column / kLanes * kLanes, of_part, lowest);
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

template <typename T>
void packed_rows_quantized(Packing packing, const std::int64_t* tokens, const std::uint8_t* packed, T* y, std::int64_t rows,
                           std::int64_t in, std::int64_t out) {
    WriteGroup write = nullptr;
    std::int64_t panel_size = 0;
    with_packing(packing, [&](auto known) {
        write = &write_group<known>;
        panel_size = panel_bytes<known>(in / kGroup);
    });
    on_team_each(rows, rows * in, [&](std::int64_t row) {
        if (!is_index(tokens[row], out)) return write_nan(y + row * in, in);
        const std::uint8_t* panel = packed + tokens[row] / kPanel * panel_size;
        for (std::int64_t g = 0; g < in / kGroup; ++g) {
            alignas(64) float numbers[kGroup];
            write(panel, g, int(tokens[row] % kPanel), numbers);
            for (int k = 0; k < kGroup; k += kLanes) store(y + row * in + g * kGroup + k, load(numbers + k));
        }
    });
}

#define PIPEZOO_INSTANTIATE(T)                                                                                        \
    template void pack_quantized<T, Packing::int8>(const T*, std::uint8_t*, std::int64_t, std::int64_t, Form);        \
    template void pack_quantized<T, Packing::int4>(const T*, std::uint8_t*, std::int64_t, std::int64_t, Form);        \
    template void packed_rows_quantized<T>(Packing, const std::int64_t*, const std::uint8_t*, T*, std::int64_t,       \
                                           std::int64_t, std::int64_t);
PIPEZOO_INSTANTIATE(float)
PIPEZOO_INSTANTIATE(bfloat16)

}  // namespace pipezoo
