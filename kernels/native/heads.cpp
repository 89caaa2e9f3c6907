#include "heads.h"

#include "tiles.h"

namespace pipezoo {
namespace {

constexpr std::int64_t kTogether = 4;  // panels that a thread computes with a tile of rows, which it has prepared itself

}  // namespace

template <typename T>
void multiply_heads(const T* x, std::int64_t row_stride, std::int64_t head_stride, const T* packed, T* y,
                    std::int64_t rows, std::int64_t heads, std::int64_t in, std::int64_t out) {
    constexpr int ps = kPerStep<T>;
    const std::int64_t panels = out / kPanel, units = (panels + kTogether - 1) / kTogether;
    on_team([&](Team& team) {
        team.each(heads * units, [&](std::int64_t unit) {
            const std::int64_t head = unit / units, begin = unit % units * kTogether;
            const std::int64_t end = std::min(begin + kTogether, panels);
            Left<T>* tile = scratch<Left<T>>(kTileRows * in);
            for (std::int64_t row = 0; row < rows; row += kTileRows) {
                const int count = int(std::min<std::int64_t>(kTileRows, rows - row));
                const T* first = x + row * row_stride + head * head_stride;
                interleave_tile<T>([=](int i) { return first + i * row_stride; }, in, count, tile);
                for (std::int64_t panel = begin; panel < end; ++panel)
                    with_rows(count, [&](auto number) {
                        constexpr int MR = decltype(number)::value;
                        const T* b = packed + (head * panels + panel) * kPanel * in;
                        Vector sum[MR][2] = {};
                        multiply_panel<MR, T>(sum, tile, b, in / ps, b + kPanel * in, 0, 1);
                        T* to = y + (row * heads + head) * out + panel * kPanel;
#pragma GCC unroll 12
                        for (int i = 0; i < MR; ++i) {
                            store(to + i * heads * out, sum[i][0]);
                            store(to + i * heads * out + kLanes, sum[i][1]);
                        }
                    });
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
