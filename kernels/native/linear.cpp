#include "linear.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <type_traits>

#include "simd.h"

namespace pipezoo {
namespace {

constexpr std::int64_t kRowsBytes = 2 << 20;  // how much of x is interleaved at a time: stays in the caches

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

template <typename T>
PIPEZOO_INLINE void write_row(T* to, __m512 first, __m512 second, std::int64_t columns) {
    if (columns >= kPanel) {
        store(to, first);
        store(to + kLanes, second);
    } else {
        store(to, first, first_lanes(columns));
        store(to + kLanes, second, first_lanes(columns - kLanes));
    }
}

template <typename T>
T* scratch(std::size_t numbers) {  // kept by each calling thread, so that no step pays for fresh memory
    thread_local std::unique_ptr<T[]> buffer;
    thread_local std::size_t size = 0;
    if (numbers > size) {
        buffer.reset(new T[numbers]);
        size = numbers;
    }
    return buffer.get();
}

}  // namespace

template <typename T>
std::int64_t packed_size(std::int64_t out, std::int64_t in) {
    return (out + kPanel - 1) / kPanel * kPanel * in;
}

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
    const std::int64_t block_tiles = std::max<std::int64_t>(4, kRowsBytes / std::int64_t(sizeof(T) * in * kTileRows));
    const std::int64_t all_tiles = (rows + kTileRows - 1) / kTileRows;
    T* interleaved = rows == 1 ? nullptr : scratch<T>(std::min(block_tiles, all_tiles) * kTileRows * in);
    for (std::int64_t first_tile = 0; first_tile < all_tiles; first_tile += block_tiles) {
        const std::int64_t tiles = std::min(block_tiles, all_tiles - first_tile);
        std::atomic<std::int64_t> next{0};
#pragma omp parallel
        {
            if (rows > 1) {
#pragma omp for
                for (std::int64_t tile = 0; tile < tiles; ++tile) {
                    const std::int64_t row = (first_tile + tile) * kTileRows;
                    interleave_tile(x + row * in, in, int(std::min<std::int64_t>(kTileRows, rows - row)),
                                    interleaved + tile * kTileRows * in);
                }
            }
            for (std::int64_t panel; (panel = next.fetch_add(1, std::memory_order_relaxed)) < panels;) {
                const T* b = packed + panel * kPanel * in;
                const std::int64_t column = panel * kPanel, columns = out - column;
                __m512 bias0 = _mm512_setzero_ps(), bias1 = _mm512_setzero_ps();
                if (bias) {
                    bias0 = load(bias + column, first_lanes(columns));
                    bias1 = load(bias + column + kLanes, first_lanes(columns - kLanes));
                }
                for (std::int64_t tile = 0; tile < tiles; ++tile) {
                    const std::int64_t row = (first_tile + tile) * kTileRows;
                    const T* a = rows == 1 ? x : interleaved + tile * kTileRows * in;
                    with_rows(int(std::min<std::int64_t>(kTileRows, rows - row)), [&](auto count) {
                        constexpr int MR = decltype(count)::value;
                        __m512 sum[MR][2];
#pragma GCC unroll 12
                        for (int i = 0; i < MR; ++i) sum[i][0] = bias0, sum[i][1] = bias1;
                        const std::ptrdiff_t step_stride = rows == 1 ? kPerStep<T> : kTileRows * kPerStep<T>;
                        multiply<MR>(sum, a, kPerStep<T>, step_stride, b, kPanel * kPerStep<T>, steps);
#pragma GCC unroll 12
                        for (int i = 0; i < MR; ++i)
                            write_row(y + (row + i) * out + column, sum[i][0], sum[i][1], columns);
                    });
                }
            }
        }
    }
}

#define PIPEZOO_INSTANTIATE(T)                                          \
    template std::int64_t packed_size<T>(std::int64_t, std::int64_t);   \
    template void pack<T>(const T*, T*, std::int64_t, std::int64_t);    \
    template void linear<T>(const T*, const T*, const T*, T*, std::int64_t, std::int64_t, std::int64_t);
PIPEZOO_INSTANTIATE(float)
PIPEZOO_INSTANTIATE(bfloat16)

}  // namespace pipezoo
