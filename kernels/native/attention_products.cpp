#include "attention_products.h"

namespace pipezoo {
namespace {

template <typename T, int MR>
void score(const Left<T>* queries, const T* keys, std::int64_t dim, const T* ahead, float* scores) {
    constexpr std::ptrdiff_t ps = kPerStep<T>, stride = kPanel * ps;
    Vector sums[MR][2] = {};
    multiply<_MM_HINT_T1>(sums, queries, ps, kTileRows * ps, keys, stride, dim / ps, ahead, stride);
#pragma GCC unroll 12
    for (int i = 0; i < MR; ++i) store(scores + i * kBlock, sums[i][0]), store(scores + i * kBlock + kLanes, sums[i][1]);
}

template <typename T, int MR>
void add(const Left<T>* weights, const T* values, std::int64_t value_step, std::int64_t steps, const T* ahead,
         const float* decay, float* sums, std::int64_t dim) {
    constexpr std::ptrdiff_t ps = kPerStep<T>;
    Vector sum[MR][2];
#pragma GCC unroll 12
    for (int i = 0; i < MR; ++i) {
        const Vector factor = all(decay[i]);
        sum[i][0] = load(sums + i * dim) * factor, sum[i][1] = load(sums + i * dim + kLanes) * factor;
    }
    multiply<_MM_HINT_T1>(sum, weights, kBlock, ps, values, value_step, steps, ahead, kPanel * ps);
#pragma GCC unroll 12
    for (int i = 0; i < MR; ++i) store(sums + i * dim, sum[i][0]), store(sums + i * dim + kLanes, sum[i][1]);
}

template <typename T>
constexpr AttentionProducts<T> products() {
    AttentionProducts<T> found{};
    each_count<kTileRows>([&](auto count) {
        found.score[count - 1] = &score<T, count>;
        found.add[count - 1] = &add<T, count>;
    });
    return found;
}

}  // namespace

template <typename T>
const AttentionProducts<T>& attention_products() {
    static constexpr AttentionProducts<T> found = products<T>();
    return found;
}

template const AttentionProducts<float>& attention_products();
template const AttentionProducts<bfloat16>& attention_products();

}  // namespace pipezoo
