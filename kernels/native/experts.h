// A mixture of experts: each row of x goes through the gated layers of the few experts that were chosen for it.
#pragma once

#include <cstdint>

#include "activations.h"
#include "packing.h"

namespace pipezoo {

// What all calls of one layer have in common, as pipezoo_core writes it: 8 bytes a field.
struct ExpertsLayer {
    const void* const* gate_ups;  // of each expert, packed to be gated: [2 · inner, hidden]
    const void* const* downs;     // of each expert, packed: [hidden, inner]
    const void* gate_up_biases;   // [count, 2 · inner] in the order of the packed columns, as all biases T; or null
    const void* down_biases;      // [count, hidden], or null
    std::int64_t hidden, inner;   // inner is a multiple of `kLanes`; with few bits both are of 32, with q4_k to q6_k of 256
    std::int64_t first, count;    // the experts that are here; others are left to other ranks
    std::int64_t top_k;           // experts of a row
    Activation activation;        // of the gate
    Packing gate_up_packing, down_packing;
};

// y[i] = Σ_j weights[i, j] · expert indices[i, j] of x[i], for x and y [rows, hidden], summed in float32 and in the order
// of j: what else is among the rows changes nothing.
//
// indices and weights are [rows, top_k]. `gated` [rows · top_k, inner] and `products` [rows · top_k, hidden] are memory to
// work in.
template <typename T>
void experts(const T* x, const std::int64_t* indices, const float* weights, T* gated, T* products, T* y,
             std::int64_t rows, const ExpertsLayer& layer);

}  // namespace pipezoo
