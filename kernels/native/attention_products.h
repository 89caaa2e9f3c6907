// The two products of attention: a tile of queries by a block of keys, and its weights by the block's values.
//
// There is one function for each number of rows; what stands between the products is compiled once.
#pragma once

#include <cstdint>

#include "simd.h"

namespace pipezoo {

constexpr int kBlock = 64;  // keys that are looked at together

template <typename T>
struct AttentionProducts {
    // scores[i] = query i of a tile x kPanel keys. queries [dim / per_step, kTileRows, per_step]; scores [rows, kBlock].
    using Score = void(const Left<T>* queries, const T* keys, std::int64_t dim, const T* ahead, float* scores);

    // sums[i] = decay[i] · sums[i] + weights of row i x kPanel numbers of the values, which lie `value_step` numbers apart
    // from step to step. weights [rows, kBlock]; rows of sums are `dim` numbers apart.
    using Add = void(const Left<T>* weights, const T* values, std::int64_t value_step, std::int64_t steps, const T* ahead,
                     const float* decay, float* sums, std::int64_t dim);

    // For n rows they are score[n - 1] and add[n - 1]. From `ahead` on both fetch as much as they read.
    Score* score[kTileRows];
    Add* add[kTileRows];
};

template <typename T>
const AttentionProducts<T>& attention_products();

}  // namespace pipezoo
