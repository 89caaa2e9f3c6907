#include "linear.h"

#include "tiles.h"

namespace pipezoo {
namespace {

template <typename T>
constexpr int kPerStep = Number<T>::per_step;

// Interleaves rows of x for the tiles: [tiles, in / per_step, kTileRows, per_step].
template <typename T>
void interleave_tile(const T* x, std::int64_t in, int rows, T* to) {
    using Pair = std::uint32_t;  // what one step takes of a row: 4 bytes of either type
    const auto* from = reinterpret_cast<const Pair*>(x);
    auto* pairs = reinterpret_cast<Pair*>(to);
    const std::int64_t steps = in / kPerStep<T>;
    std::int64_t s = 0;
    for (; s + kLanes <= steps; s += kLanes) {
        alignas(64) Pair block[kTileRows][kLanes];
        for (int i = 0; i < rows; ++i) std::memcpy(block[i], from + i * steps + s, sizeof block[i]);
        const __m512i index = _mm512_mullo_epi32(
            _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(kLanes));
        const __mmask16 lanes = first_lanes(rows);
        for (int j = 0; j < kLanes; ++j) {
            const __m512i column = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), lanes, index, &block[0][j], 4);
            _mm512_mask_storeu_epi32(pairs + (s + j) * kTileRows, lanes, column);
        }
    }
    for (; s < steps; ++s)
        for (int i = 0; i < rows; ++i) pairs[s * kTileRows + i] = from[i * steps + s];
}

}  // namespace

template <typename T>
void pack(const T* weight, T* packed, std::int64_t out, std::int64_t in) {
    const std::int64_t panels = (out + kPanel - 1) / kPanel, steps = in / kPerStep<T>;
#pragma omp parallel for
    for (std::int64_t panel = 0; panel < panels; ++panel) {
        T* to = packed + panel * kPanel * in;
        for (std::int64_t s = 0; s < steps; ++s)
            for (int column = 0; column < kPanel; ++column)
                for (int p = 0; p < kPerStep<T>; ++p) {
                    const std::int64_t row = panel * kPanel + column;
                    *to++ = row < out ? weight[row * in + s * kPerStep<T> + p] : T(0);
                }
    }
}

template <typename T>
void linear(const T* x, const T* packed, const T* bias, T* y, std::int64_t rows, std::int64_t in, std::int64_t out) {
    const std::int64_t panels = (out + kPanel - 1) / kPanel, steps = in / kPerStep<T>;
    const std::int64_t block_tiles = tiles_per_block(rows, kTileRows, in * sizeof(T));
    const bool one_row = rows == 1;  // as it lies, it is interleaved
    T* interleaved = one_row ? nullptr : scratch<T>(block_tiles * kTileRows * in);
    for_panels(
        rows, kTileRows, block_tiles, panels, !one_row,
        [&](Tile tile) {
            interleave_tile(x + tile.first_row * in, in, tile.rows, interleaved + tile.index * kTileRows * in);
        },
        [&](std::int64_t panel, Tile tile) {
            const T* a = one_row ? x : interleaved + tile.index * kTileRows * in;
            const std::int64_t column = panel * kPanel;
            __m512 first, second;
            read_panel(bias ? bias + column : nullptr, out - column, first, second);
            with_rows(tile.rows, [&](auto count) {
                constexpr int MR = decltype(count)::value;
                __m512 sum[MR][2];
#pragma GCC unroll 12
                for (int i = 0; i < MR; ++i) sum[i][0] = first, sum[i][1] = second;
                const std::ptrdiff_t step_stride = one_row ? kPerStep<T> : kTileRows * kPerStep<T>;
                multiply<MR>(sum, a, kPerStep<T>, step_stride, packed + panel * kPanel * in, kPanel * kPerStep<T>, steps);
#pragma GCC unroll 12
                for (int i = 0; i < MR; ++i)
                    write_panel(y + (tile.first_row + i) * out + column, sum[i][0], sum[i][1], out - column);
            });
        });
}

template <typename T>
void packed_rows(const std::int64_t* tokens, const T* packed, T* y, std::int64_t rows, std::int64_t in) {
    constexpr int ps = kPerStep<T>;
#pragma omp parallel for if (rows > 8)
    for (std::int64_t row = 0; row < rows; ++row) {
        const T* from = packed + tokens[row] / kPanel * kPanel * in + tokens[row] % kPanel * ps;
        for (std::int64_t i = 0; i < in; i += ps) std::memcpy(y + row * in + i, from + i * kPanel, ps * sizeof(T));
    }
}

#define PIPEZOO_INSTANTIATE(T)                                                                                   \
    template void pack<T>(const T*, T*, std::int64_t, std::int64_t);                                             \
    template void linear<T>(const T*, const T*, const T*, T*, std::int64_t, std::int64_t, std::int64_t);         \
    template void packed_rows<T>(const std::int64_t*, const T*, T*, std::int64_t, std::int64_t);
PIPEZOO_INSTANTIATE(float)
PIPEZOO_INSTANTIATE(bfloat16)

}  // namespace pipezoo
