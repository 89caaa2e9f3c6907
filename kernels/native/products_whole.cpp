// Products with weights in the type of x.
#include <algorithm>

#include "products.h"

namespace pipezoo {
namespace {

// Interleaves a tile's rows: [in / per_step, rows, per_step].
template <typename T>
void interleave_tile(const void* const* rows, int count, std::int64_t in, void* tile) {
    const std::int64_t steps = in / kPerStep<T>;
    auto* to = static_cast<Left<T>*>(tile);
    for (std::int64_t s = 0; s < steps; s += kLanes) {
        const Mask lanes = first_lanes(steps - s);
        Words block[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i)
            block[i] = i < count ? load_words(static_cast<const T*>(rows[i]) + s * kPerStep<T>, lanes) : no_words();
        transpose(block);
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; ++j)
            if (s + j < steps) store_left<T>(to + (s + j) * count * kPerStep<T>, block[j], first_lanes(count));
    }
}

// What is fetched is what is read next: the panel's own numbers, and at its end those that the next one begins with. Of
// `tiles` that are multiplied by one panel, after the first the panel is in the caches: each of them fetches a part of the
// next one, so that the memory has as much to do in all of them.
template <typename T, int MR>
void multiply_tile(Vector (*sums)[2], const void* tile, std::int64_t in, const Panel& panel) {
    constexpr _mm_hint hint = MR <= kFew ? _MM_HINT_T0 : _MM_HINT_T1;
    constexpr std::ptrdiff_t ps = kPerStep<T>, stride = kPanel * ps;
    constexpr std::int64_t ahead = MR <= kFew ? kAheadOfFew : kAheadOfMore;
    const auto* a = static_cast<const Left<T>*>(tile);
    const auto *b = static_cast<const T*>(panel.numbers), *next = static_cast<const T*>(panel.next);
    const std::int64_t steps = in / ps;
    add_to<MR>(sums, [&](auto& sum) __attribute__((always_inline)) {
        if (panel.tiles > 1)
            return multiply<hint>(sum, a, ps, MR * ps, b, stride, steps, next + steps * stride * panel.tile / panel.tiles,
                                  stride / panel.tiles);
        const std::int64_t most = std::max<std::int64_t>(0, steps - ahead);
        multiply<hint>(sum, a, ps, MR * ps, b, stride, most, b + ahead * stride, stride);
        multiply<hint>(sum, a + most * MR * ps, ps, MR * ps, b + most * stride, stride, steps - most, next, stride);
    });
}

template <typename T>
constexpr Product whole() {
    Product product{
        kTileRows, std::is_same_v<T, Left<T>>,  // one row is interleaved; with some instructions it is widened
        [](std::int64_t in) { return kPanel * in * std::int64_t(sizeof(T)); },
        [](std::int64_t in) { return kTileRows * in * std::int64_t(sizeof(Left<T>)); },
        &interleave_tile<T>, {}};
    each_count<kTileRows>([&](auto count) { product.multiply[count - 1] = &multiply_tile<T, count>; });
    return product;
}

}  // namespace

template <typename T>
const Product& product_of_whole() {
    static constexpr Product product = whole<T>();
    return product;
}

template const Product& product_of_whole<float>();
template const Product& product_of_whole<bfloat16>();

}  // namespace pipezoo
