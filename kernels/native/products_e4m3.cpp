// Products with weights of 8-bit floats: rows keep their type, and the numbers of a weight are widened to it.
#include <algorithm>

#include "products.h"
#include "spans.h"

namespace pipezoo {
namespace {

// part[p][i] += row i of a tile x the panel's numbers, `steps` times `kPerCodes` of them. Parts are `kPart` numbers apart.
template <int MR, typename T, int parts>
PIPEZOO_INLINE void multiply_codes(Vector (&part)[parts][MR][2], const Left<T>* a, const std::uint8_t* b,
                                   std::int64_t steps, const std::uint8_t* ahead) {
    constexpr int vector = kLanes * kPerCodes, times = kPerCodes / kPerStep<T>;
    for (std::int64_t s = 0; s < steps; ++s, a += kPerCodes * MR, b += 2 * vector, ahead += 2 * vector) {
#pragma GCC unroll 2
        for (int p = 0; p < parts; ++p) {
            _mm_prefetch(reinterpret_cast<const char*>(ahead + p * kPart * kPanel), _MM_HINT_T0);
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half) {
                Right<T> numbers[times];
                load_e4m3(b + p * kPart * kPanel + half * vector, numbers, static_cast<const T*>(nullptr));
#pragma GCC unroll 2
                for (int n = 0; n < times; ++n)
#pragma GCC unroll 12
                    for (int i = 0; i < MR; ++i)
                        part[p][i][half] = step(part[p][i][half], numbers[n],
                                                a + p * kPart * MR + (n * MR + i) * kPerStep<T>);
            }
        }
    }
}

// sum += a tile of MR rows, interleaved, x a panel.
//
// Of few rows the sums of two parts grow side by side, because one alone would wait for itself. They are added in the same
// order as where one part follows the other: what else is in a tile changes nothing.
template <int MR, typename T>
PIPEZOO_INLINE void multiply_e4m3(Vector (&sum)[MR][2], const Left<T>* a, const std::uint8_t* panel, std::int64_t in,
                                  const std::uint8_t* next) {
    constexpr int parts = MR <= kFew ? 2 : 1;
    constexpr std::int64_t most_ahead = 8 << 10;
    const float* scales = reinterpret_cast<const float*>(panel);
    const std::uint8_t *b = panel + spans_of(in) * kPanel * sizeof(float), *const end = b + in * kPanel;
    const auto add = [&](Vector(&part)[MR][2], const float* scale) __attribute__((always_inline)) {
#pragma GCC unroll 12
        for (int i = 0; i < MR; ++i) {
            sum[i][0] = add_product(sum[i][0], part[i][0], load(scale));
            sum[i][1] = add_product(sum[i][1], part[i][1], load(scale + kLanes));
            part[i][0] = part[i][1] = zeros();
        }
    };
    for (std::int64_t first = 0; first < in;) {
        const float* scale = scales + first / kSpan * kPanel;
        const std::int64_t size = std::min(parts * kPart, in - first);
        const std::uint8_t* ahead = b + most_ahead;
        if (ahead + parts * kPart * kPanel > end) ahead = next, next += size * kPanel;
        Vector part[parts][MR][2];
#pragma GCC unroll 2
        for (int p = 0; p < parts; ++p)
#pragma GCC unroll 12
            for (int i = 0; i < MR; ++i) part[p][i][0] = part[p][i][1] = zeros();
        if (size == parts * kPart) {
            multiply_codes<MR, T, parts>(part, a, b, kPart / kPerCodes, ahead);
#pragma GCC unroll 2
            for (int p = 0; p < parts; ++p) add(part[p], scale);
        } else {  // a row's end
            Vector one[1][MR][2];
#pragma GCC unroll 12
            for (int i = 0; i < MR; ++i) one[0][i][0] = one[0][i][1] = zeros();
            for (std::int64_t at = 0; at < size; at += kPart) {
                const std::int64_t steps = std::min(kPart, size - at) / kPerCodes;
                multiply_codes<MR, T, 1>(one, a + at * MR, b + at * kPanel, steps, ahead + at * kPanel);
                add(one[0], scale);
            }
        }
        first += size, a += size * MR, b += size * kPanel;
    }
}

template <typename T, int MR>
void multiply_tile(Vector (*sums)[2], const void* tile, std::int64_t in, const Panel& panel) {
    add_to<MR>(sums, [&](auto& sum) __attribute__((always_inline)) {
        multiply_e4m3<MR, T>(sum, static_cast<const Left<T>*>(tile), static_cast<const std::uint8_t*>(panel.numbers), in,
                             static_cast<const std::uint8_t*>(panel.next));
    });
}

template <typename T>
Product of_e4m3() {
    Product product = product_of_whole<T>();
    product.panel_bytes = &panel_bytes_e4m3;
    each_count<kTileRows>([&](auto count) { product.multiply[count - 1] = &multiply_tile<T, count>; });
    return product;
}

}  // namespace

template <typename T>
const Product& product_of_e4m3() {
    static const Product product = of_e4m3<T>();
    return product;
}

template const Product& product_of_e4m3<float>();
template const Product& product_of_e4m3<bfloat16>();

}  // namespace pipezoo
