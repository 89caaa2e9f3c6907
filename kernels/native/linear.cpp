#include "linear.h"

#include "tiles.h"

namespace pipezoo {
namespace {

// sum[p] += one row of A x panel p of two. As `multiply`, with twice as many sums that do not wait for each other.
template <typename T>
PIPEZOO_INLINE void multiply_row(Vector (&sum)[2][2], const Left<T>* a, const T* b, std::ptrdiff_t panel_stride,
                                 std::int64_t steps, const T* ahead) {
    constexpr int vector = kLanes * kPerStep<T>;
    for (std::int64_t s = 0; s < steps; ++s, a += kPerStep<T>, b += 2 * vector, ahead += 2 * vector) {
#pragma GCC unroll 2
        for (int p = 0; p < 2; ++p) {
            const T* panel = b + p * panel_stride;
            _mm_prefetch(reinterpret_cast<const char*>(ahead + p * panel_stride), _MM_HINT_T0);
            sum[p][0] = step(sum[p][0], load_right(panel), a);
            sum[p][1] = step(sum[p][1], load_right(panel + vector), a);
        }
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
                const Mask lanes = first_lanes(steps - s);
                Words block[kLanes];
#pragma GCC unroll 16
                for (int i = 0; i < kLanes; ++i)
                    block[i] = load_words(from + i * in, column + i < out ? lanes : no_lanes());
                transpose(block);
                T* to = packed + panel * kPanel * in + (s * kPanel + half) * kPerStep<T>;
#pragma GCC unroll 16
                for (int j = 0; j < kLanes; ++j)
                    if (s + j < steps) store_words(to + j * kPanel * kPerStep<T>, block[j]);
            }
}

template <typename T>
void linear(const T* x, const T* packed, const T* bias, void* y, std::int64_t rows, std::int64_t in, std::int64_t out,
            Form form, Activation activation) {
    const std::int64_t panels = (out + kPanel - 1) / kPanel, steps = in / kPerStep<T>;
    const Left<T>* as_it_lies = nullptr;  // one row is interleaved; with AVX2 it is widened
    if constexpr (std::is_same_v<T, Left<T>>) as_it_lies = rows == 1 ? x : nullptr;
    const bool in_pairs = kRowInPairs && rows == 1;
    const std::int64_t tiles = (rows + kTileRows - 1) / kTileRows;
    for_panels<Left<T>>(
        rows, kTileRows, as_it_lies ? 0 : kTileRows * in, in_pairs ? (panels + 1) / 2 : panels,
        [&](Tile tile, Left<T>* interleaved) {
            const T* first = x + tile.first_row * in;
            if (!as_it_lies) interleave_tile<T>([=](int row) { return first + row * in; }, in, tile.rows, interleaved);
        },
        [&](std::int64_t unit, std::int64_t next_unit, Tile tile, const Left<T>* interleaved) {
            const Left<T>* a = as_it_lies ? as_it_lies : interleaved;
            const std::int64_t panel = in_pairs ? 2 * unit : unit, column = panel * kPanel;
            const std::int64_t next_panel = in_pairs ? 2 * next_unit : next_unit;
            const T *b = packed + column * in, *next = next_panel < panels ? packed + next_panel * kPanel * in : b;
            if (in_pairs && panel + 1 < panels) {
                Vector sum[2][2];
                for (int p = 0; p < 2; ++p) {
                    const std::int64_t at = column + p * kPanel;
                    read_panel(bias ? bias + at : nullptr, out - at, sum[p][0], sum[p][1]);
                }
                constexpr std::ptrdiff_t stride = kPanel * kPerStep<T>;
                const std::int64_t most = std::max<std::int64_t>(0, steps - kAheadOfFew);
                multiply_row<T>(sum, a, b, kPanel * in, most, b + kAheadOfFew * stride);
                multiply_row<T>(sum, a + most * kPerStep<T>, b + most * stride, kPanel * in, steps - most, next);
                for (int p = 0; p < 2; ++p)
                    write_product<T>(y, 0, panel + p, out, form, activation, sum[p][0], sum[p][1]);
                return;
            }
            Vector first, second;
            read_panel(bias ? bias + column : nullptr, out - column, first, second);
            with_rows(tile.rows, [&](auto count) {
                constexpr int MR = decltype(count)::value;
                Vector sum[MR][2];
#pragma GCC unroll 12
                for (int i = 0; i < MR; ++i) sum[i][0] = first, sum[i][1] = second;
                multiply_panel<MR, T>(sum, a, b, steps, next, tile.first_row / kTileRows, tiles);
#pragma GCC unroll 12
                for (int i = 0; i < MR; ++i)
                    write_product<T>(y, tile.first_row + i, panel, out, form, activation, sum[i][0], sum[i][1]);
            });
        });
}

template <typename T>
void packed_rows(const std::int64_t* tokens, const T* packed, T* y, std::int64_t rows, std::int64_t in,
                 std::int64_t out) {
    constexpr int ps = kPerStep<T>;
    on_team_each(rows, rows * in, [&](std::int64_t row) {
        if (!is_index(tokens[row], out)) return write_nan(y + row * in, in);
        const T* from = packed + tokens[row] / kPanel * kPanel * in + tokens[row] % kPanel * ps;
        for (std::int64_t i = 0; i < in; i += ps) std::memcpy(y + row * in + i, from + i * kPanel, ps * sizeof(T));
    });
}

#define PIPEZOO_INSTANTIATE(T)                                                                                   \
    template void pack<T>(const T*, T*, std::int64_t, std::int64_t, Form);                                       \
    template void linear<T>(const T*, const T*, const T*, void*, std::int64_t, std::int64_t, std::int64_t, Form, \
                            Activation);                                                                         \
    template void packed_rows<T>(const std::int64_t*, const T*, T*, std::int64_t, std::int64_t, std::int64_t);
PIPEZOO_INSTANTIATE(float)
PIPEZOO_INSTANTIATE(bfloat16)

}  // namespace pipezoo
