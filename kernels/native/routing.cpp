#include "routing.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tiles.h"

namespace pipezoo {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();  // of what cannot be chosen, or is chosen already
constexpr int kExperts = 4;                                       // whose products with a row are computed together
constexpr std::int64_t kTogether = 16;                            // rows that a thread takes at a time

// The place of the greatest number, of equal ones the first; NaN is above all, as in torch.
std::int64_t greatest(const float* numbers, std::int64_t count) {
    std::int64_t best = 0;
    for (std::int64_t i = 1; i < count && numbers[best] == numbers[best]; ++i)
        if (!(numbers[i] <= numbers[best])) best = i;
    return best;
}

void softmax(const float* logits, float* probabilities, std::int64_t count) {
    const float most = logits[greatest(logits, count)];
    float sum = 0;
    for (std::int64_t i = 0; i < count; ++i) sum += probabilities[i] = std::exp(logits[i] - most);
    for (std::int64_t i = 0; i < count; ++i) probabilities[i] /= sum;
}

// Leaves the scores of the best groups. `memory` has room for a number per group and for the scores of one.
void keep_best_groups(float* scores, float* memory, const RouterLayer& layer) {
    const std::int64_t size = layer.num_experts / layer.num_groups;
    float *groups = memory, *left = memory + layer.num_groups;
    for (std::int64_t group = 0; group < layer.num_groups; ++group) {
        std::copy_n(scores + group * size, size, left);
        groups[group] = 0;
        for (std::int64_t i = 0; i < layer.group_best; ++i) {
            const std::int64_t best = greatest(left, size);
            groups[group] += left[best];
            left[best] = kNone;
        }
    }
    for (std::int64_t i = layer.num_groups - layer.num_chosen_groups; i > 0; --i) {
        std::int64_t least = 0;  // of equal ones the last
        for (std::int64_t group = 1; group < layer.num_groups; ++group)
            if (groups[group] <= groups[least]) least = group;
        groups[least] = std::numeric_limits<float>::infinity();
        std::fill_n(scores + least * size, size, kNone);
    }
}

void route_row(const float* logits, std::int64_t* indices, float* weights, float* memory, const RouterLayer& layer) {
    const std::int64_t count = layer.num_experts, top_k = layer.top_k;
    float *scores = memory, *left = memory + count;
    if (layer.scores == Scores::softmax)
        softmax(logits, scores, count);
    else if (layer.scores == Scores::sigmoid)
        for (std::int64_t i = 0; i < count; ++i) scores[i] = 1 / (1 + std::exp(-logits[i]));
    else
        std::copy_n(logits, count, scores);
    for (std::int64_t i = 0; i < count; ++i) left[i] = scores[i] + (layer.correction ? layer.correction[i] : 0.0f);
    if (layer.num_groups > 1) keep_best_groups(left, memory + 2 * count, layer);
    for (std::int64_t k = 0; k < top_k; ++k) {
        indices[k] = greatest(left, count);
        weights[k] = scores[indices[k]];
        left[indices[k]] = kNone;
    }
    if (layer.scores == Scores::softmax_of_chosen) softmax(weights, weights, top_k);
    float sum = 0;
    for (std::int64_t k = 0; k < top_k; ++k) sum += weights[k];
    sum += float(layer.added_to_sum);
    for (std::int64_t k = 0; k < top_k; ++k)
        weights[k] = (layer.is_normalized ? weights[k] / sum : weights[k]) * float(layer.scale);
}

// The logits of some experts, `count` of at most `kExperts`.
template <int count, typename T>
void multiply_row(const T* x, float* logits, std::int64_t first, const RouterLayer& layer) {
    Vector sums[count];
    for (int e = 0; e < count; ++e) sums[e] = zeros();
    for (std::int64_t i = 0; i < layer.hidden; i += kLanes) {
        const Mask lanes = first_lanes(layer.hidden - i);
        const Vector numbers = load(x + i, lanes);
        for (int e = 0; e < count; ++e)
            sums[e] = add_product(sums[e], numbers, load(layer.weight + (first + e) * layer.hidden + i, lanes));
    }
    for (int e = 0; e < count; ++e) logits[first + e] = sum(sums[e]) + (layer.bias ? layer.bias[first + e] : 0.0f);
}

}  // namespace

template <typename T>
void route(const T* x, float* logits, std::int64_t* indices, float* weights, std::int64_t rows,
           const RouterLayer& layer) {
    constexpr int kExponential = 16;  // takes as long as to read so many numbers
    const std::int64_t count = layer.num_experts, top_k = layer.top_k;
    const std::int64_t pieces = (count + kExperts - 1) / kExperts, blocks = (rows + kTogether - 1) / kTogether;
    on_team_each(blocks * pieces, rows * count * layer.hidden / kExperts, [&](std::int64_t unit) {
        const std::int64_t first = unit % pieces * kExperts, begin = unit / pieces * kTogether;
        for (std::int64_t row = begin; row < std::min(rows, begin + kTogether); ++row)
            with_rows<kExperts>(int(std::min<std::int64_t>(kExperts, count - first)), [&](auto some) {
                multiply_row<decltype(some)::value>(x + row * layer.hidden, logits + row * count, first, layer);
            });
    });
    on_team_each(rows, rows * count * (kExponential + top_k), [&](std::int64_t row) {
        float* memory = scratch<float>(3 * count + layer.num_groups);
        route_row(logits + row * count, indices + row * top_k, weights + row * top_k, memory, layer);
    });
}

#define PIPEZOO_INSTANTIATE(T) \
    template void route<T>(const T*, float*, std::int64_t*, float*, std::int64_t, const RouterLayer&);
PIPEZOO_INSTANTIATE(float)
PIPEZOO_INSTANTIATE(bfloat16)

}  // namespace pipezoo
