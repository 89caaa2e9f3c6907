#include "experts.h"

#include <algorithm>

#include "groups.h"
#include "tiles.h"

namespace pipezoo {
namespace {

// Weights in the type of x: how rows are prepared, and a tile of them is multiplied by a panel.
template <typename T>
struct Whole {
    using Prepared = Left<T>;
    static constexpr int kMost = kTileRows;
    static constexpr bool kOneAsItLies = std::is_same_v<T, Prepared>;  // a tile of one row is read where that is

    static std::int64_t prepared_size(std::int64_t in) { return kTileRows * in; }
    static std::int64_t panel_bytes(std::int64_t in) { return kPanel * in * std::int64_t(sizeof(T)); }

    template <typename Row>
    static void prepare(const Row& row, std::int64_t in, int rows, Prepared* to) {
        if (!kOneAsItLies || rows > 1) interleave_tile<T>(row, in, rows, to);
    }

    template <int MR>
    PIPEZOO_INLINE static void multiply(Vector (&sum)[MR][2], const Prepared* a, const std::uint8_t* panel, std::int64_t in,
                                        const std::uint8_t* next, std::int64_t tile, std::int64_t tiles) {
        multiply_panel<MR, T>(sum, a, reinterpret_cast<const T*>(panel), in / kPerStep<T>,
                              reinterpret_cast<const T*>(next), tile, tiles);
    }
};

// Weights of few bits.
template <typename T, Packing packing>
struct Few {
    using Prepared = Group;
    static constexpr int kMost = kRows;
    static constexpr bool kOneAsItLies = false;

    static std::int64_t prepared_size(std::int64_t in) { return in / kGroup; }
    static std::int64_t panel_bytes(std::int64_t in) { return pipezoo::panel_bytes<packing>(in / kGroup); }

    template <typename Row>
    static void prepare(const Row& row, std::int64_t in, int rows, Prepared* to) {
        round_rows<packing>(row, in, rows, to);
    }

    template <int MR>
    PIPEZOO_INLINE static void multiply(Vector (&sum)[MR][2], const Prepared* a, const std::uint8_t* panel, std::int64_t in,
                                        const std::uint8_t* next, std::int64_t, std::int64_t) {
        multiply_groups<MR, packing>(sum, a, panel, in / kGroup, next);
    }
};

struct ExpertTile {
    std::int32_t expert, first, rows;  // the first's place among all sorted pairs
};

// Pairs of a row and one of its experts, in the order of the experts, and for each of them in that of the rows.
//
// Two rows whose experts are 5, 2 and 2, 7 are the pairs 0, 1, 2 and 3, sorted 1, 2, 0, 3: tiles of expert 2 with two rows
// and of 5 and 7 with one. Each thread that asks has its own, in its scratch memory: to sort is less work than to wait.
struct SortedPairs {
    std::int32_t* pairs;
    ExpertTile* tiles;
    std::int32_t* runs;  // memory for the tiles at which an expert begins
    std::int64_t num_tiles = 0;

    SortedPairs(const std::int64_t* indices, std::int64_t num_pairs, std::int64_t first, std::int64_t count, int most) {
        static_assert(sizeof(ExpertTile) == 3 * sizeof(std::int32_t));
        std::int32_t* ends = scratch<std::int32_t>(2 * (count + 1) + num_pairs + 3 * (count + num_pairs / most));
        runs = ends + count + 1;
        pairs = runs + count + 1;
        tiles = reinterpret_cast<ExpertTile*>(pairs + num_pairs);
        std::fill(ends, ends + count + 1, 0);
        for (std::int64_t pair = 0; pair < num_pairs; ++pair)
            if (is_index(indices[pair] - first, count)) ++ends[indices[pair] - first + 1];
        for (std::int64_t expert = 0; expert < count; ++expert) ends[expert + 1] += ends[expert];
        for (std::int64_t pair = 0; pair < num_pairs; ++pair)  // now the ends are starts, until an expert has its pairs
            if (is_index(indices[pair] - first, count)) pairs[ends[indices[pair] - first]++] = std::int32_t(pair);
        std::int32_t begin = 0;
        for (std::int32_t expert = 0; expert < count; begin = ends[expert++])
            for (std::int32_t at = begin; at < ends[expert]; at += most)
                tiles[num_tiles++] = {expert, at, std::min<std::int32_t>(most, ends[expert] - at)};
    }
};

// Multiplies each expert's rows by its weight [out, in] and calls `write(place, panel, first, second)`. `row(place)` is
// where the row of a sorted pair lies.
//
// Rows are prepared in blocks that stay in the caches. One thread at a time has a panel of an expert, for all of its tiles in
// the block, so that the panel is read once.
template <typename Format, typename T, typename Row, typename Write>
void multiply_experts(const SortedPairs& sorted, std::int64_t in, std::int64_t out, const void* const* weights,
                      const T* biases, const Row& row, const Write& write) {
    using Prepared = typename Format::Prepared;
    const std::int64_t panels = (out + kPanel - 1) / kPanel, size = Format::prepared_size(in);
    const std::int64_t block = std::max<std::int64_t>(1, kBlockBytes / (size * std::int64_t(sizeof(Prepared))));
    for (std::int64_t begin = 0; begin < sorted.num_tiles; begin += block) {
        const std::int64_t num_tiles = std::min(block, sorted.num_tiles - begin);
        const ExpertTile* tiles = sorted.tiles + begin;
        std::int64_t num_runs = 0;
        for (std::int64_t i = 0; i < num_tiles; ++i)
            if (i == 0 || tiles[i].expert != tiles[i - 1].expert) sorted.runs[num_runs++] = std::int32_t(i);
        sorted.runs[num_runs] = std::int32_t(num_tiles);
        on_team([&](Team& team) {
            Prepared* prepared = team.shared([&] { return scratch<Prepared>(num_tiles * size); });
            team.each(num_tiles, [&](std::int64_t i) {
                Format::prepare([&](int r) { return row(tiles[i].first + r); }, in, tiles[i].rows, prepared + i * size);
            });
            team.barrier();
            const auto panel_of = [&](std::int64_t unit) {
                const void* weight = weights[tiles[sorted.runs[unit / panels]].expert];
                return static_cast<const std::uint8_t*>(weight) + unit % panels * Format::panel_bytes(in);
            };
            team.each_in_turn(num_runs * panels, [&](std::int64_t unit, std::int64_t next_unit) {
                const std::int64_t panel = unit % panels, column = panel * kPanel;
                const std::int64_t begin = sorted.runs[unit / panels], end = sorted.runs[unit / panels + 1];
                const std::uint8_t *b = panel_of(unit), *next = next_unit < num_runs * panels ? panel_of(next_unit) : b;
                Vector first, second;
                read_panel(biases ? biases + tiles[begin].expert * out + column : nullptr, out - column, first, second);
                for (std::int64_t i = begin; i < end; ++i)
                    with_rows<Format::kMost>(tiles[i].rows, [&](auto count) {
                        constexpr int MR = decltype(count)::value;
                        const Prepared* a = prepared + i * size;
                        if constexpr (MR == 1 && Format::kOneAsItLies) a = row(tiles[i].first);
                        Vector sum[MR][2];
#pragma GCC unroll 12
                        for (int r = 0; r < MR; ++r) sum[r][0] = first, sum[r][1] = second;
                        Format::template multiply<MR>(sum, a, b, in, next, i - begin, end - begin);
#pragma GCC unroll 12
                        for (int r = 0; r < MR; ++r) write(tiles[i].first + r, panel, sum[r][0], sum[r][1]);
                    });
            });
        });
    }
}

// Calls `work` with what computes weights that are packed so.
template <typename T, typename Work>
void with_format(Packing packing, Work&& work) {
    switch (packing) {
        case Packing::none: return work(Whole<T>{});
        case Packing::int8: return work(Few<T, Packing::int8>{});
        case Packing::int4: return work(Few<T, Packing::int4>{});
        case Packing::q4_0: return work(Few<T, Packing::q4_0>{});
        case Packing::q4_1: return work(Few<T, Packing::q4_1>{});
        case Packing::q4_k: return work(Few<T, Packing::q4_k>{});
        case Packing::q5_k: return work(Few<T, Packing::q5_k>{});
        case Packing::q6_k: return work(Few<T, Packing::q6_k>{});
        case Packing::affine4_32: return work(Few<T, Packing::affine4_32>{});
        case Packing::affine4_64: return work(Few<T, Packing::affine4_64>{});
        case Packing::affine4_128: return work(Few<T, Packing::affine4_128>{});
        case Packing::affine8_32: return work(Few<T, Packing::affine8_32>{});
        case Packing::affine8_64: return work(Few<T, Packing::affine8_64>{});
    }
}

}  // namespace

template <typename T>
void experts(const T* x, const std::int64_t* indices, const float* weights, T* gated_rows, T* products, T* y,
             std::int64_t rows, const ExpertsLayer& layer) {
    const std::int64_t hidden = layer.hidden, inner = layer.inner, top_k = layer.top_k;
    with_format<T>(layer.gate_up_packing, [&](auto format) {
        using Format = decltype(format);
        const SortedPairs sorted(indices, rows * top_k, layer.first, layer.count, Format::kMost);
        multiply_experts<Format>(
            sorted, hidden, 2 * inner, layer.gate_ups, static_cast<const T*>(layer.gate_up_biases),
            [&](std::int64_t place) { return x + sorted.pairs[place] / top_k * hidden; },
            [&](std::int64_t place, std::int64_t panel, Vector gate, Vector up) {
                store(gated_rows + place * inner + panel * kLanes, let_through(layer.activation, gate, up));
            });
    });
    with_format<T>(layer.down_packing, [&](auto format) {
        using Format = decltype(format);
        const SortedPairs sorted(indices, rows * top_k, layer.first, layer.count, Format::kMost);  // in the same order
        multiply_experts<Format>(
            sorted, inner, hidden, layer.downs, static_cast<const T*>(layer.down_biases),
            [&](std::int64_t place) { return gated_rows + place * inner; },
            [&](std::int64_t place, std::int64_t panel, Vector first, Vector second) {
                const std::int64_t column = panel * kPanel;
                write_panel(products + sorted.pairs[place] * hidden + column, first, second, hidden - column);
            });
    });
    on_team_each(rows, rows * top_k * hidden, [&](std::int64_t row) {
        for (std::int64_t i = 0; i < hidden; i += kLanes) {
            const Mask lanes = first_lanes(hidden - i);
            Vector sum = zeros();
            for (std::int64_t pair = row * top_k; pair < (row + 1) * top_k; ++pair)
                if (is_index(indices[pair] - layer.first, layer.count))
                    sum = add_product(sum, load(products + pair * hidden + i, lanes), all(weights[pair]));
            store(y + row * hidden + i, sum, lanes);
        }
    });
}

#define PIPEZOO_INSTANTIATE(T)                                                                       \
    template void experts<T>(const T*, const std::int64_t*, const float*, T*, T*, T*, std::int64_t, \
                             const ExpertsLayer&);
PIPEZOO_INSTANTIATE(float)
PIPEZOO_INSTANTIATE(bfloat16)

}  // namespace pipezoo
