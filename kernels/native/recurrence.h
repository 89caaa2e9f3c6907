// Layers that carry a state of fixed size from one row of a request to its next: the short convolution, the gated delta
// rule (Yang et al., 2024: Gated Delta Networks) and the selective scan (Dao and Gu, 2024: Transformers are SSMs).
//
// Row by row, so that a request's results and states are the same bits in whatever chunks its rows come, and whatever else
// is in the step. States are float32.
#pragma once

#include <cstdint>

#include "activations.h"

namespace pipezoo {

// Whose rows are whose in a step, and where their states are. Python writes it, 4 fields of 8 bytes each: a change of it is
// a new `kInterface` in module.cpp.
struct StateStep {
    std::int64_t num_requests;
    const std::int64_t* row_offsets;  // [num_requests + 1], where each request's rows begin
    const std::int64_t* read_slots;   // [num_requests], where its state is; -1 for zeros
    const std::int64_t* write_slots;  // [num_requests], where it is to be; may be where it is

    std::int64_t num_rows() const { return row_offsets[num_requests]; }
};
static_assert(sizeof(StateStep) == 4 * 8);

// y[t] = bias + Σ_k weight[k] · x[t - taps + 1 + k] of each channel, and silu of it where it is activated.
//
// x [T, size], whose rows lie `stride` numbers apart; weight [taps, size], bias [size] or null; y [T, size] contiguous.
// state [slots, taps - 1, size] has the inputs before a request's first row, the oldest first.
template <typename T>
void short_convolution(const T* x, std::int64_t stride, const T* weight, const T* bias, float* state, T* y,
                       std::int64_t size, std::int64_t taps, bool is_activated, const StateStep& step);

// What the rows of a step are to the gated delta rule. Rows lie `stride` numbers apart.
template <typename T>
struct DeltaRows {
    const T* qkv;  // [T, key_heads · key_size, the same, heads · value_size]: queries, keys, values
    std::int64_t qkv_stride;
    const T* a;    // [T, heads], of the decay
    std::int64_t a_stride;
    const T* b;    // [T, heads], of the strength
    std::int64_t b_stride;
};

struct DeltaSizes {
    std::int64_t key_heads, heads;  // each head of keys and queries serves as many heads of values, one after the other
    std::int64_t key_size, value_size;
};

// For each row and head, with q and k of length 1 and then q divided by sqrt(key_size):
//
//     S = exp(-exp(decay_log) · softplus(a + decay_bias)) · S
//     S = S + k (sigmoid(b) · (v - Sᵀk))ᵀ
//     y = Sᵀq
//
// decay_log and decay_bias [heads]; state [slots, heads, key_size, value_size]; y [T, heads · value_size] contiguous.
template <typename T>
void gated_delta_rule(const DeltaRows<T>& rows, const float* decay_log, const float* decay_bias, float* state, T* y,
                      const StateStep& step, const DeltaSizes& sizes);

// What the rows of a step are to the selective scan. Rows lie `stride` numbers apart.
template <typename T>
struct ScanRows {
    const T* xbc;  // [T, heads · head_size + 2 · groups · state_size]: inputs, B, C
    std::int64_t xbc_stride;
    const T* dt;   // [T, heads], of the step's length
    std::int64_t dt_stride;
};

struct ScanSizes {
    std::int64_t groups, heads;  // each group's B and C serve as many heads, one after the other
    std::int64_t state_size, head_size;
};

struct ScanParameters {
    const float* of_heads;  // [3, heads]: logarithm of the decay's rate, what dt gets added, what x is let through by
    float shortest, longest;
};

// For each row and head, with d = softplus(dt + bias), no less than `shortest` and no more than `longest`:
//
//     S = exp(-exp(decay_log) · d) · S + B (d · x)ᵀ
//     y = SᵀC + skip · x
//
// state [slots, heads, state_size, head_size]; y [T, heads · head_size] contiguous.
template <typename T>
void selective_scan(const ScanRows<T>& rows, const ScanParameters& parameters, float* state, T* y, const StateStep& step,
                    const ScanSizes& sizes);

// y = x / sqrt(mean(x²) + eps) · weight · silu(gate), head by head; with `is_gated_first` u / sqrt(mean(u²) + eps) · weight,
// where u = x · silu(gate). x and y [rows, heads, size] contiguous; gate [rows, heads, size], rows `gate_stride` numbers
// apart; weight [size] of all heads, or [heads, size] where `weight_stride` is `size`, not 0.
template <typename T>
void gated_rms_norm(const T* x, const T* weight, const T* gate, T* y, std::int64_t rows, std::int64_t heads,
                    std::int64_t size, std::int64_t weight_stride, std::int64_t gate_stride, float eps,
                    bool is_gated_first);

}  // namespace pipezoo
