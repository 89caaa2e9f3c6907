#include "linear.h"

#include <algorithm>

#include "products.h"
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

// The same with a whole row, which also fetches what is read next.
template <typename T>
void multiply_by_two(Vector (&sum)[2][2], const Left<T>* a, const T* b, std::int64_t in, const T* next) {
    constexpr std::ptrdiff_t ps = kPerStep<T>, stride = kPanel * ps;
    const std::int64_t steps = in / ps, most = std::max<std::int64_t>(0, steps - kAheadOfFew);
    multiply_row<T>(sum, a, b, kPanel * in, most, b + kAheadOfFew * stride);
    multiply_row<T>(sum, a + most * ps, b + most * stride, kPanel * in, steps - most, next);
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
void linear(Packing packing, const T* x, const void* packed, const T* bias, void* y, std::int64_t rows, std::int64_t in,
            std::int64_t out, Form form, Activation activation) {
    const Product& product = product_of<T>(packing);
    const std::int64_t panels = (out + kPanel - 1) / kPanel, panel_bytes = product.panel_bytes(in);
    const std::int64_t tiles = (rows + product.most - 1) / product.most;
    const bool as_it_lies = rows == 1 && product.takes_row_itself;
    const std::int64_t together = kRowInPairs && rows == 1 && packing == Packing::none ? 2 : 1;
    for_panels(
        rows, product.most, as_it_lies ? 0 : product.tile_bytes(in), (panels + together - 1) / together,
        [&](Tile tile, std::byte* prepared) {
            if (as_it_lies) return;
            const void* rows_of_tile[kMostRows];
            for (int i = 0; i < tile.rows; ++i) rows_of_tile[i] = x + (tile.first_row + i) * in;
            product.prepare(rows_of_tile, tile.rows, in, prepared);
        },
        [&](std::int64_t unit, std::int64_t next_unit, Tile tile, const std::byte* prepared) {
            const void* a = as_it_lies ? static_cast<const void*>(x) : prepared;
            const std::int64_t panel = unit * together, next_panel = next_unit * together, column = panel * kPanel;
            const std::byte* b = static_cast<const std::byte*>(packed) + panel * panel_bytes;
            const std::byte* next = next_panel < panels ? b + (next_panel - panel) * panel_bytes : b;
            if (together == 2 && panel + 1 < panels) {
                Vector sum[2][2];
                for (int p = 0; p < 2; ++p) {
                    const std::int64_t at = column + p * kPanel;
                    read_panel(bias ? bias + at : nullptr, out - at, sum[p][0], sum[p][1]);
                }
                multiply_by_two<T>(sum, static_cast<const Left<T>*>(a), reinterpret_cast<const T*>(b), in,
                                   reinterpret_cast<const T*>(next));
                for (int p = 0; p < 2; ++p)
                    write_product<T>(y, 0, panel + p, out, form, activation, sum[p][0], sum[p][1]);
                return;
            }
            Vector first, second, sums[kMostRows][2];
            read_panel(bias ? bias + column : nullptr, out - column, first, second);
            for (int i = 0; i < tile.rows; ++i) sums[i][0] = first, sums[i][1] = second;
            product.multiply[tile.rows - 1](sums, a, in, {b, next, tile.first_row / product.most, tiles});
            for (int i = 0; i < tile.rows; ++i)
                write_product<T>(y, tile.first_row + i, panel, out, form, activation, sums[i][0], sums[i][1]);
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
    template void linear<T>(Packing, const T*, const void*, const T*, void*, std::int64_t, std::int64_t,         \
                            std::int64_t, Form, Activation);                                                     \
    template void packed_rows<T>(const std::int64_t*, const T*, T*, std::int64_t, std::int64_t, std::int64_t);
PIPEZOO_INSTANTIATE(float)
PIPEZOO_INSTANTIATE(bfloat16)

}  // namespace pipezoo
