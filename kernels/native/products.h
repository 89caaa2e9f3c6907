// A tile of rows by a panel of a weight's columns, whatever form the weight is packed in.
//
// Each form has a function for each number of rows. All that multiplies (linear layers, experts, heads) calls them
// through a table, so that each is compiled once.
#pragma once

#include <cstdint>

#include "packing.h"

namespace pipezoo {

constexpr int kMostRows = 12;  // of a tile, in any form

// Steps to prefetch, which the hardware does not: of few rows' product, which waits for the memory alone, into the first
// cache; of more rows' into the second, which has room for more that is on its way.
constexpr int kFew = 4, kAheadOfFew = 64, kAheadOfMore = 128;

// The panel that a tile is multiplied by.
struct Panel {
    const void* numbers;
    const void* next;          // the panel that the thread reads next, so that it can be fetched early
    std::int64_t tile, tiles;  // which of the tiles that are multiplied by this panel one after the other
};

// How rows of `in` numbers are multiplied by a weight that is packed in some form.
struct Product {
    int most;               // rows of a tile at most
    bool takes_row_itself;  // one row is a tile as it lies in memory
    std::int64_t (*panel_bytes)(std::int64_t in);
    std::int64_t (*tile_bytes)(std::int64_t in);  // of as many rows as a tile has at most

    // Makes a tile of rows.
    void (*prepare)(const void* const* rows, int count, std::int64_t in, void* tile);

    // sums[i] += row i of a tile of n rows x the panel's columns, which are two vectors. For n it is multiply[n - 1].
    void (*multiply[kMostRows])(Vector (*sums)[2], const void* tile, std::int64_t in, const Panel& panel);
};

template <typename T>
const Product& product_of_whole();  // weights in the type of x

template <typename T>
const Product& product_of_e4m3();

template <typename T>
const Product& product_of_groups(Packing packing);

template <typename T>
const Product& product_of(Packing packing) {
    if (packing == Packing::none) return product_of_whole<T>();
    return packing == Packing::e4m3 ? product_of_e4m3<T>() : product_of_groups<T>(packing);
}

// Calls `work` with sums that can stay in registers.
template <int MR, typename Work>
PIPEZOO_INLINE void add_to(Vector (*sums)[2], Work&& work) {
    Vector sum[MR][2];
#pragma GCC unroll 12
    for (int i = 0; i < MR; ++i) sum[i][0] = sums[i][0], sum[i][1] = sums[i][1];
    work(sum);
#pragma GCC unroll 12
    for (int i = 0; i < MR; ++i) sums[i][0] = sum[i][0], sums[i][1] = sum[i][1];
}

}  // namespace pipezoo
