#include "linear.h"

#include "tiles.h"

namespace pipezoo {
namespace {

template <typename T>
constexpr int kPerStep = Number<T>::per_step;

// Turns 16 vectors of 16 numbers of 4 bytes over: to[j][i] = from[i][j].
PIPEZOO_INLINE void transpose(__m512i (&rows)[16]) {
    __m512i t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        rows[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        rows[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        rows[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        rows[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {  // what is left is to turn over 4 x 4 pieces of 4 numbers
        const __m512i low0 = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0x88);
        const __m512i low1 = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0x88);
        const __m512i high0 = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0xdd);
        const __m512i high1 = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0xdd);
        t[i] = _mm512_shuffle_i32x4(low0, low1, 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(high0, high1, 0x88);
        t[i + 8] = _mm512_shuffle_i32x4(low0, low1, 0xdd);
        t[i + 12] = _mm512_shuffle_i32x4(high0, high1, 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) rows[i] = t[i];
}

// Interleaves rows of x for a tile: [in / per_step, kTileRows, per_step].
template <typename T>
void interleave_tile(const T* x, std::int64_t in, int rows, T* to) {
    static_assert(sizeof(T) * kPerStep<T> == 4);
    const std::int64_t steps = in / kPerStep<T>;
    for (std::int64_t s = 0; s < steps; s += kLanes) {
        const __mmask16 lanes = first_lanes(steps - s);
        __m512i block[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i)
            block[i] = i < rows ? _mm512_maskz_loadu_epi32(lanes, x + i * in + s * kPerStep<T>) : _mm512_setzero_si512();
        transpose(block);
#pragma GCC unroll 16
        for (int j = 0; j < 16; ++j)
            if (s + j < steps) _mm512_mask_storeu_epi32(to + (s + j) * kTileRows * kPerStep<T>, 0x0FFF, block[j]);
    }
}

}  // namespace

template <typename T>
void pack(const T* weight, T* packed, std::int64_t out, std::int64_t in, Form form) {
    const std::int64_t panels = (out + kPanel - 1) / kPanel, steps = in / kPerStep<T>;
#pragma omp parallel for
    for (std::int64_t panel = 0; panel < panels; ++panel)
        for (std::int64_t s = 0; s < steps; s += kLanes)
            for (int half = 0; half < kPanel; half += kLanes) {
                const std::int64_t column = panel * kPanel + half;
                const T* from = weight + row_of(column, out, form) * in + s * kPerStep<T>;
                const __mmask16 lanes = first_lanes(steps - s);
                __m512i block[16];
#pragma GCC unroll 16
                for (int i = 0; i < 16; ++i)
                    block[i] = _mm512_maskz_loadu_epi32(column + i < out ? lanes : 0, from + i * in);
                transpose(block);
                T* to = packed + panel * kPanel * in + (s * kPanel + half) * kPerStep<T>;
#pragma GCC unroll 16
                for (int j = 0; j < 16; ++j)
                    if (s + j < steps) _mm512_storeu_si512(to + j * kPanel * kPerStep<T>, block[j]);
            }
}

template <typename T>
void linear(const T* x, const T* packed, const T* bias, void* y, std::int64_t rows, std::int64_t in, std::int64_t out,
            Form form) {
    const std::int64_t panels = (out + kPanel - 1) / kPanel, steps = in / kPerStep<T>;
    const bool one_row = rows == 1;  // as it lies, it is interleaved
    for_panels<T>(
        rows, kTileRows, one_row ? 0 : kTileRows * in, panels,
        [&](Tile tile, T* interleaved) {
            if (!one_row) interleave_tile(x + tile.first_row * in, in, tile.rows, interleaved);
        },
        [&](std::int64_t panel, Tile tile, const T* interleaved) {
            const T* a = one_row ? x : interleaved;
            const std::int64_t column = panel * kPanel;
            __m512 first, second;
            read_panel(bias ? bias + column : nullptr, out - column, first, second);
            with_rows(tile.rows, [&](auto count) {
                constexpr int MR = decltype(count)::value;
                __m512 sum[MR][2];
#pragma GCC unroll 12
                for (int i = 0; i < MR; ++i) sum[i][0] = first, sum[i][1] = second;
                const std::ptrdiff_t step_stride = one_row ? kPerStep<T> : kTileRows * kPerStep<T>;
                const T* b = packed + panel * kPanel * in;
                const std::ptrdiff_t b_stride = kPanel * kPerStep<T>;
                multiply<MR>(sum, a, kPerStep<T>, step_stride, b, b_stride, steps, b + kAhead * b_stride);
#pragma GCC unroll 12
                for (int i = 0; i < MR; ++i)
                    write_product<T>(y, tile.first_row + i, panel, out, form, sum[i][0], sum[i][1]);
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
    template void pack<T>(const T*, T*, std::int64_t, std::int64_t, Form);                                       \
    template void linear<T>(const T*, const T*, const T*, void*, std::int64_t, std::int64_t, std::int64_t, Form);   \
    template void packed_rows<T>(const std::int64_t*, const T*, T*, std::int64_t, std::int64_t);
PIPEZOO_INSTANTIATE(float)
PIPEZOO_INSTANTIATE(bfloat16)

}  // namespace pipezoo
