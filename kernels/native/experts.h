// A mixture of experts: each row of x goes through the layers, gated or not, of the few experts that were chosen for it.
#pragma once

#include <cstdint>

#include "activations.h"
#include "packing.h"

namespace pipezoo {

// What all calls of one layer have in common, as pipezoo_core writes it: 8 bytes a field.
struct ExpertsLayer {
    const void* const* gate_ups;  // of each expert, packed to be gated: [2 · inner, hidden]; without gates [inner, hidden]
    const void* const* downs;     // of each expert, packed: [hidden, inner]
    const void* gate_up_biases;   // [count, that many] in the order of the packed columns, as all biases T; or null
    const void* down_biases;      // [count, hidden], or null
    std::int64_t hidden, inner;   // even, gated inner of `kLanes`; with few bits both are of 32, with q4_k to q6_k of 256
    std::int64_t first, count;    // the experts that are here; others are left to other ranks
    std::int64_t top_k;           // experts of a row
    Activation activation;        // of the gate, or of the only product
    Packing gate_up_packing, down_packing;
    std::int64_t is_gated;
};

// y[i] = Σ_j weights[i, j] · expert indices[i, j] of x[i], for x and y [rows, hidden], summed in float32 and in the order
// of j: what else is among the rows changes nothing.
//
// indices and weights are [rows, top_k]. `inside` [rows · top_k, inner] and `products` [rows · top_k, hidden] are memory to
// work in.
template <typename T>
void experts(const T* x, const std::int64_t* indices, const float* weights, T* inside, T* products, T* y,
             std::int64_t rows, const ExpertsLayer& layer);

}  // namespace pipezoo
