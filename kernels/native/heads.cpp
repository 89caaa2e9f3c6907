#include "heads.h"

#include <algorithm>

#include "products.h"
#include "tiles.h"

namespace pipezoo {
namespace {

constexpr std::int64_t kTogether = 4;  // panels that a thread computes with a tile of rows, which it has prepared itself

}  // namespace

template <typename T>
void multiply_heads(const T* x, std::int64_t row_stride, std::int64_t head_stride, const T* packed, T* y,
                    std::int64_t rows, std::int64_t heads, std::int64_t in, std::int64_t out) {
    const Product& product = product_of_whole<T>();
    const std::int64_t panels = out / kPanel, units = (panels + kTogether - 1) / kTogether;
    on_team([&](Team& team) {
        team.each(heads * units, [&](std::int64_t unit) {
            const std::int64_t head = unit / units, begin = unit % units * kTogether;
            const std::int64_t end = std::min(begin + kTogether, panels);
            std::byte* tile = scratch<std::byte>(product.tile_bytes(in));
            for (std::int64_t row = 0; row < rows; row += product.most) {
                const int count = int(std::min<std::int64_t>(product.most, rows - row));
                const void* rows_of_tile[kMostRows];
                for (int i = 0; i < count; ++i) rows_of_tile[i] = x + (row + i) * row_stride + head * head_stride;
                product.prepare(rows_of_tile, count, in, tile);
                for (std::int64_t panel = begin; panel < end; ++panel) {
                    const T* b = packed + (head * panels + panel) * kPanel * in;
                    Vector sums[kMostRows][2] = {};
                    product.multiply[count - 1](sums, tile, in, {b, b + kPanel * in, 0, 1});
                    T* to = y + (row * heads + head) * out + panel * kPanel;
                    for (int i = 0; i < count; ++i) write_panel(to + i * heads * out, sums[i][0], sums[i][1], kPanel);
                }
            }
        });
    });
}

#define PIPEZOO_INSTANTIATE(T)                                                                                      \
    template void multiply_heads<T>(const T*, std::int64_t, std::int64_t, const T*, T*, std::int64_t, std::int64_t, \
                                    std::int64_t, std::int64_t);
PIPEZOO_INSTANTIATE(float)
PIPEZOO_INSTANTIATE(bfloat16)

}  // namespace pipezoo
