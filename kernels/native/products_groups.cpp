// Products with weights of few bits: rows are rounded to 8 bits, and products within a group are exact in integers.
#include <limits>

#include "products.h"

namespace pipezoo {
namespace {

constexpr int kRows = 8;  // of a tile: with AVX-512 their sums stay in registers, and half a panel's weights
constexpr int kVectors = kGroup / kLanes;
constexpr std::int64_t kFetchedAhead = 8 << 10;  // bytes

// Rows of x, rounded to 8 bits: what a tile's products read, group by group.
struct Group {
    std::int8_t values[kSteps][kRows][kPerInt];
    float scale[kRows];
    float total[kRows];             // scale · sum of values, for the weights' minima
    std::int32_t offset[2][kRows];  // -kOffset · sum of a part's values, because the weights are stored with as much added
};

// Of weights whose groups have `parts` scales, and are stored with an offset.
template <typename T, int parts, int offset>
void round_rows(const void* const* rows, int count, std::int64_t in, void* tile) {
    auto* groups = static_cast<Group*>(tile);
    for (std::int64_t g = 0; g < in / kGroup; ++g) {
        for (int i = 0; i < count; ++i) {
            const T* from = static_cast<const T*>(rows[i]) + g * kGroup;
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
            Words totals[parts];
#pragma GCC unroll 2
            for (Words& total : totals) total = no_words();
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
                const Words integers = to_integers(numbers[v] * inverse);
                Words& total = totals[v * parts / kVectors];
                total = add_integers(total, integers);
                store_int8(rounded + v * kLanes, integers);
            }
            std::int64_t sum = 0;
#pragma GCC unroll 2
            for (int part = 0; part < parts; ++part) {
                const std::int64_t of_part = sum_of_integers(totals[part]);
                groups[g].offset[part][i] = std::int32_t(-offset * of_part);  // of NaN it is any number
                sum += of_part;
            }
            for (int s = 0; s < kSteps; ++s) std::memcpy(groups[g].values[s][i], rounded + s * kPerInt, kPerInt);
            groups[g].scale[i] = scale;
            groups[g].total[i] = scale * float(sum);
        }
    }
}

template <int MR, Packing packing, int half, int part>
PIPEZOO_INLINE void multiply_part(Vector (&sum)[MR][2], const Group& a, const std::uint8_t* head,
                                  const std::uint8_t* steps, const std::uint8_t* b) {
    constexpr int count = kSteps / kParts<packing>, first = part * count;
    Words weights[count];
    each_step<count>([&](auto s) __attribute__((always_inline)) {
        weights[s] = load_step<packing, half, first + decltype(s)::value>(b + kScaleBytes<packing>);
    });
    Vector scales, minima;
    load_scales<packing, part>(head, steps, b, half * kLanes, scales, minima);
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
        const Words product = multiply_bytes<kProductBits<packing>, kOffset<packing> != 0>(
            weights, a.values[first][i], kRows * kPerInt, a.offset[part][i]);
        sum[i][half] = add_product(sum[i][half], to_floats(product), scales * all(a.scale[i]));
        if constexpr (kHasMinima<packing>) sum[i][half] = add_product(sum[i][half], minima, all(a.total[i]));
    }
}

template <int MR, Packing packing, int half>
PIPEZOO_INLINE void multiply_half(Vector (&sum)[MR][2], const Group& a, const std::uint8_t* head,
                                  const std::uint8_t* steps, const std::uint8_t* b) {
    multiply_part<MR, packing, half, 0>(sum, a, head, steps, b);
    if constexpr (kParts<packing> > 1) multiply_part<MR, packing, half, 1>(sum, a, head, steps, b);
}

// sum += a tile of MR rows x a panel. Fetches early what it reads, and at the panel's end what the next one begins with.
template <int MR, Packing packing>
PIPEZOO_INLINE void multiply_groups(Vector (&sum)[MR][2], const Group* a, const std::uint8_t* b, std::int64_t groups,
                                    const std::uint8_t* next) {
    const std::uint8_t* head = b;
    const std::uint8_t* const end = b + panel_bytes<packing>(groups);
    const auto fetch = [=](const std::uint8_t* from, std::int64_t size) {
        const std::uint8_t* ahead = from + kFetchedAhead;
        if (ahead >= end) ahead = next + (ahead - end);
        for (std::int64_t line = 0; line < size; line += 64) _mm_prefetch(ahead + line, _MM_HINT_T0);
    };
    b += kHeadBytes<packing>;
    for (std::int64_t block = 0; block < groups; block += kBlockGroups<packing>) {
        const std::uint8_t* steps = b;
        if constexpr (kHasBlocks<packing>) fetch(steps, kStepBytes<packing>);
        b += kStepBytes<packing>;
#pragma GCC unroll 1
        for (int g = 0; g < kBlockGroups<packing>; ++g, ++a, b += kGroupBytes<packing>) {
            fetch(b, kGroupBytes<packing>);
            multiply_half<MR, packing, 0>(sum, *a, head, steps, b);
            asm volatile("" ::: "memory");  // weights are better loaded again than kept in registers that sums need
            multiply_half<MR, packing, 1>(sum, *a, head, steps, b);
        }
    }
}

template <int MR, Packing packing>
void multiply_tile(Vector (*sums)[2], const void* tile, std::int64_t in, const Panel& panel) {
    add_to<MR>(sums, [&](auto& sum) __attribute__((always_inline)) {
        multiply_groups<MR, packing>(sum, static_cast<const Group*>(tile), static_cast<const std::uint8_t*>(panel.numbers),
                                     in / kGroup, static_cast<const std::uint8_t*>(panel.next));
    });
}

template <typename T, Packing packing>
constexpr Product of_groups() {
    Product product{kRows, false,
                    [](std::int64_t in) { return panel_bytes<packing>(in / kGroup); },
                    [](std::int64_t in) { return in / kGroup * std::int64_t(sizeof(Group)); },
                    &round_rows<T, kParts<packing>, kOffset<packing>>, {}};
    each_count<kRows>([&](auto count) { product.multiply[count - 1] = &multiply_tile<count, packing>; });
    return product;
}

}  // namespace

template <typename T>
const Product& product_of_groups(Packing packing) {
    const Product* found = nullptr;
    with_packing(packing, [&](auto known) {
        static constexpr Product product = of_groups<T, known>();
        found = &product;
    });
    return *found;
}

template const Product& product_of_groups<float>(Packing);
template const Product& product_of_groups<bfloat16>(Packing);

}  // namespace pipezoo
