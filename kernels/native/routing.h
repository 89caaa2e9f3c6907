// Which experts of a mixture each row goes to, and with which weights: see `Router` and `Routing` in pipezoo_core.
#pragma once

#include <cstdint>

namespace pipezoo {

// What the chosen experts' weights are made of, of a row's logits.
enum class Scores : std::int64_t { softmax, sigmoid, softmax_of_chosen };

// What all calls of one router have in common, as pipezoo_core writes it: 8 bytes a field.
struct RouterLayer {
    const float* weight;      // [num_experts, hidden]
    const float* bias;        // [num_experts], or null
    const float* correction;  // [num_experts], added to the scores for the choice and not to the weights; or null
    std::int64_t hidden, num_experts, top_k;
    Scores scores;
    std::int64_t is_normalized;
    std::int64_t num_groups, num_chosen_groups, group_best;
    double added_to_sum, scale;
};

// indices and weights [rows, top_k] of x [rows, hidden]. `logits` [rows, num_experts] is memory to work in.
//
// Indices are valid ones, also of NaN, whose weights are NaN. What else is among the rows changes nothing.
template <typename T>
void route(const T* x, float* logits, std::int64_t* indices, float* weights, std::int64_t rows,
           const RouterLayer& layer);

}  // namespace pipezoo
