// Attention over paged keys and values, for prefill and decode alike (FlashAttention-2: Dao, 2023; splits along the
// keys as in FlashDecoding).
//
// A page holds, per key/value head, what the products read in one step side by side (see simd.h):
//     keys   [page_size / kPanel, head_dim / per_step, kPanel, per_step]
//     values [page_size / per_step, value_dim, per_step]
// head_dim and value_dim are multiples of kPanel, page_size one of 32. Where the values are the first value_dim numbers of
// the keys, there are no pages of values.
#pragma once

#include <cstdint>

#include "activations.h"

namespace pipezoo {

// A piece of work: the queries of some rows against a range of keys. The rows are of one request, or of several that
// share these keys and see all of them.
struct Item {
    std::int32_t row;          // of its first query in the step
    std::int32_t num_queries;
    std::int32_t position;     // of its first query in the request
    std::int32_t first_key;    // a multiple of 32
    std::int32_t end_key;
    std::int32_t pages;        // where the request's page numbers begin in the page table
    std::int32_t partial;      // where its first query's partial result goes; -1 if the queries see no other keys
};

// A row whose keys were split over several items.
struct Split {
    std::int32_t row;
    std::int32_t first;         // where the numbers of its partial results begin in `partial_numbers`
    std::int32_t num_partials;
};

// What is the same in a step for all layers whose pages are alike. Python writes it, 17 fields of 8 bytes each: a change
// of it is a new `kInterface` in module.cpp.
struct Step {
    std::int64_t num_rows;
    const std::int32_t* row_pages;  // [num_rows], the page that a row's key and value are written to
    const std::int32_t* row_slots;  // [num_rows], and the place in it
    std::int64_t num_items;
    const Item* items;
    const std::int32_t* page_table;
    std::int64_t num_splits;
    const Split* splits;
    const std::int32_t* partial_numbers;
    float* partials;                // [num_partials, num_heads, 2 + value_dim]: maximum, sum, weighted values
    std::int64_t num_heads, num_kv_heads, head_dim, value_dim, page_size;
    std::int64_t window;            // how many tokens a query sees, itself included; 0 for all
    std::int64_t chunk;             // how many positions make a chunk, of which a query sees its own; 0 for no chunks
};
static_assert(sizeof(Step) == 17 * 8);

// What a layer makes of the scores, the same in all steps. Python writes it, too.
struct Layer {
    double scale;         // not negative
    double softcap;       // a bound of the scaled scores; 0 for none
    const float* slopes;  // [num_heads] of ALiBi, or null
};
static_assert(sizeof(Layer) == 3 * 8);

// Rows of several heads, a stride apart that counts numbers; null for rows that there are none of.
template <typename T>
struct Rows {
    const T* first;
    std::int64_t stride;

    const T* row(std::int64_t i) const { return first + i * stride; }
};

// Cosines and sines of the rows, [T, dim] each; null for no rotation. Of a head, `dim` numbers from `first` on are rotated.
template <typename T>
struct Rotation {
    const T* cos;
    const T* sin;
    std::int64_t dim, first;
};

// Rotates q and k, writes k and v into their pages, and then what the queries see into `out`.
//
// q [T, num_heads, head_dim], k [T, num_kv_heads, head_dim], v [T, num_kv_heads, value_dim]; no k where all keys are in the
// pages already; no v there, and none where value_pages is null: the values lie in the keys then. sinks [num_heads] or null;
// out [T, num_heads, value_dim], contiguous. What is not finite in k or v is written finite, because a weight of 0 times
// infinity is NaN, which would reach other requests. The row itself gets NaN, in the query heads that share the key/value
// head; so does one whose queries are not finite.
//
// Throws std::bad_alloc when all threads are done, so that the team can go on.
template <typename T>
void attend(Rows<T> q, Rows<T> k, Rows<T> v, Rotation<T> rotation, T* key_pages, T* value_pages, T* out,
            const Step& step, const Layer& layer, const T* sinks);

}  // namespace pipezoo
