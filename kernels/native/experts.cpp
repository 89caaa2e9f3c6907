#include "experts.h"

#include <algorithm>

#include "products.h"
#include "tiles.h"

namespace pipezoo {
namespace {

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
template <typename T, typename Row, typename Write>
void multiply_experts(const Product& product, const SortedPairs& sorted, std::int64_t in, std::int64_t out,
                      const void* const* weights, const T* biases, const Row& row, const Write& write) {
    const std::int64_t panels = (out + kPanel - 1) / kPanel, size = product.tile_bytes(in);
    const std::int64_t block = std::max<std::int64_t>(1, kBlockBytes / size), panel_bytes = product.panel_bytes(in);
    const auto as_it_lies = [&](const ExpertTile& tile) { return tile.rows == 1 && product.takes_row_itself; };
    for (std::int64_t begin = 0; begin < sorted.num_tiles; begin += block) {
        const std::int64_t num_tiles = std::min(block, sorted.num_tiles - begin);
        const ExpertTile* tiles = sorted.tiles + begin;
        std::int64_t num_runs = 0;
        for (std::int64_t i = 0; i < num_tiles; ++i)
            if (i == 0 || tiles[i].expert != tiles[i - 1].expert) sorted.runs[num_runs++] = std::int32_t(i);
        sorted.runs[num_runs] = std::int32_t(num_tiles);
        on_team([&](Team& team) {
            std::byte* prepared = team.shared([&] { return scratch<std::byte>(num_tiles * size); });
            team.each(num_tiles, [&](std::int64_t i) {
                if (as_it_lies(tiles[i])) return;
                const void* rows[kMostRows];
                for (int r = 0; r < tiles[i].rows; ++r) rows[r] = row(tiles[i].first + r);
                product.prepare(rows, tiles[i].rows, in, prepared + i * size);
            });
            team.barrier();
            const auto panel_of = [&](std::int64_t unit) {
                const void* weight = weights[tiles[sorted.runs[unit / panels]].expert];
                return static_cast<const std::byte*>(weight) + unit % panels * panel_bytes;
            };
            team.each_in_turn(num_runs * panels, [&](std::int64_t unit, std::int64_t next_unit) {
                const std::int64_t panel = unit % panels, column = panel * kPanel;
                const std::int64_t begin = sorted.runs[unit / panels], end = sorted.runs[unit / panels + 1];
                const std::byte *b = panel_of(unit), *next = next_unit < num_runs * panels ? panel_of(next_unit) : b;
                Vector first, second, sums[kMostRows][2];
                read_panel(biases ? biases + tiles[begin].expert * out + column : nullptr, out - column, first, second);
                for (std::int64_t i = begin; i < end; ++i) {
                    const ExpertTile& tile = tiles[i];
                    const void* a = as_it_lies(tile) ? static_cast<const void*>(row(tile.first)) : prepared + i * size;
                    for (int r = 0; r < tile.rows; ++r) sums[r][0] = first, sums[r][1] = second;
                    product.multiply[tile.rows - 1](sums, a, in, {b, next, i - begin, end - begin});
                    for (int r = 0; r < tile.rows; ++r) write(tile.first + r, panel, sums[r][0], sums[r][1]);
                }
            });
        });
    }
}

}  // namespace

template <typename T>
void experts(const T* x, const std::int64_t* indices, const float* weights, T* inside, T* products, T* y,
             std::int64_t rows, const ExpertsLayer& layer) {
    const std::int64_t hidden = layer.hidden, inner = layer.inner, top_k = layer.top_k;
    const auto sorted_for = [&](const Product& product) {  // always in the same order
        return SortedPairs(indices, rows * top_k, layer.first, layer.count, product.most);
    };
    const Product &gate_up = product_of<T>(layer.gate_up_packing), &down = product_of<T>(layer.down_packing);
    const SortedPairs of_gates = sorted_for(gate_up);
    const T* biases = static_cast<const T*>(layer.gate_up_biases);
    const auto row = [&](std::int64_t place) { return x + of_gates.pairs[place] / top_k * hidden; };
    const auto let = [&](std::int64_t place, std::int64_t panel, Vector gate, Vector up) {
        store(inside + place * inner + panel * kLanes, let_through(layer.activation, gate, up));
    };
    const auto activate = [&](std::int64_t place, std::int64_t panel, Vector first, Vector second) {
        const std::int64_t column = panel * kPanel;
        write_panel(inside + place * inner + column, activated(layer.activation, first),
                    activated(layer.activation, second), inner - column);
    };
    if (layer.is_gated)
        multiply_experts(gate_up, of_gates, hidden, 2 * inner, layer.gate_ups, biases, row, let);
    else
        multiply_experts(gate_up, of_gates, hidden, inner, layer.gate_ups, biases, row, activate);
    const SortedPairs of_downs = sorted_for(down);
    multiply_experts(
        down, of_downs, inner, hidden, layer.downs, static_cast<const T*>(layer.down_biases),
        [&](std::int64_t place) { return inside + place * inner; },
        [&](std::int64_t place, std::int64_t panel, Vector first, Vector second) {
            const std::int64_t column = panel * kPanel;
            write_panel(products + of_downs.pairs[place] * hidden + column, first, second, hidden - column);
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
