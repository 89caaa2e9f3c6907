// How a product's work is divided: rows in tiles, output columns in panels, one thread per panel at a time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "linear.h"
#include "team.h"

namespace pipezoo {

constexpr std::int64_t kBlockBytes = 2 << 20;  // prepared rows that are worked on at a time: they stay in the caches
constexpr std::int64_t kOwnTiles = 4;         // that each thread prepares for itself

// Memory of one thread, kept between calls, so that no step pays for fresh pages.
template <typename T>
T* scratch(std::int64_t count) {
    thread_local std::unique_ptr<T[]> buffer;
    thread_local std::int64_t size = 0;
    if (count > size) {
        buffer.reset(new T[count]);
        size = count;
    }
    return buffer.get();
}

struct Tile {
    std::int64_t first_row;
    int rows;
};

// Block by block: prepares each tile of rows, then computes each panel with each tile. A prepared tile has `tile_bytes`; 0 if
// nothing is to be done.
//
// What a thread has written, another waits long for. Of few tiles therefore each thread prepares its own copy.
// `compute(panel, next, tile, prepared)` is also told the panel that the thread computes next, or `panels`.
template <typename Prepare, typename Compute>
void for_panels(std::int64_t rows, int tile_rows, std::int64_t tile_bytes, std::int64_t panels, Prepare&& prepare,
                Compute&& compute) {
    const std::int64_t all_tiles = (rows + tile_rows - 1) / tile_rows;
    const std::int64_t fitting = kBlockBytes / std::max<std::int64_t>(1, tile_bytes);
    const std::int64_t block_tiles = std::min(std::max<std::int64_t>(fitting, 1), all_tiles);
    for (std::int64_t begin = 0; begin < all_tiles; begin += block_tiles) {
        const std::int64_t tiles = std::min(block_tiles, all_tiles - begin);
        const auto tile = [&](std::int64_t index) {
            const std::int64_t first_row = (begin + index) * tile_rows;
            return Tile{first_row, int(std::min<std::int64_t>(tile_rows, rows - first_row))};
        };
        on_team([&](Team& team) {
            const auto memory = [&] { return scratch<std::byte>(tiles * tile_bytes); };
            std::byte* prepared = tiles <= kOwnTiles ? memory() : team.shared(memory);
            const auto prepare_tile = [&](std::int64_t i) { prepare(tile(i), prepared + i * tile_bytes); };
            if (tiles <= kOwnTiles) {
                for (std::int64_t i = 0; i < tiles; ++i) prepare_tile(i);
            } else {
                team.each(tiles, prepare_tile);
                team.barrier();
            }
            team.each_in_turn(panels, [&](std::int64_t panel, std::int64_t next) {
                for (std::int64_t i = 0; i < tiles; ++i) compute(panel, next, tile(i), prepared + i * tile_bytes);
            });
        });
    }
}

// Which row of a weight is a column of its panels; gated, a panel has a vector of the first half and one of the second.
inline std::int64_t row_of(std::int64_t column, std::int64_t out, Form form) {
    if (form != Form::gated) return column;
    const std::int64_t place = column % kPanel;
    return column / kPanel * kLanes + place % kLanes + (place < kLanes ? 0 : out / 2);
}

// Writes the columns of a row's panel; fewer at the matrix's edge.
template <typename T>
PIPEZOO_INLINE void write_panel(T* to, Vector first, Vector second, std::int64_t columns) {
    if (columns >= kPanel) {
        store(to, first);
        store(to + kLanes, second);
    } else {
        store(to, first, first_lanes(columns));
        store(to + kLanes, second, first_lanes(columns - kLanes));
    }
}

// Writes the two vectors of a row's panel; gated, the first is a gate and the second what it lets through.
template <typename T>
PIPEZOO_INLINE void write_product(void* to, std::int64_t row, std::int64_t panel, std::int64_t out, Form form,
                                  Activation activation, Vector first, Vector second) {
    const std::int64_t column = panel * kPanel;
    if (form == Form::gated)
        store(static_cast<T*>(to) + row * (out / 2) + column / 2, let_through(activation, first, second));
    else if (form == Form::wide)
        write_panel(static_cast<float*>(to) + row * out + column, first, second, out - column);
    else
        write_panel(static_cast<T*>(to) + row * out + column, first, second, out - column);
}

// Reads the numbers that belong to the columns of a panel; zeros where there is no vector, and beyond the edge.
template <typename T>
PIPEZOO_INLINE void read_panel(const T* from, std::int64_t columns, Vector& first, Vector& second) {
    first = second = zeros();
    if (!from) return;
    first = load(from, first_lanes(columns));
    second = load(from + kLanes, first_lanes(columns - kLanes));
}

}  // namespace pipezoo
