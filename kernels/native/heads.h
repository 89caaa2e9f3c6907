// Products of heads, each with a weight of its own (the matrices of multi-head latent attention: DeepSeek-V2, section 2.1).
#pragma once

#include <cstdint>

namespace pipezoo {

// y[t, h] = x[t, h] W[h]ᵀ. Sums are float32.
//
// x [rows, heads, in], whose rows and heads lie strides apart that count numbers; y [rows, heads, out], contiguous. `packed` is
// all of W as one weight [heads · out, in], see linear.h; `out` is a multiple of kPanel.
template <typename T>
void multiply_heads(const T* x, std::int64_t row_stride, std::int64_t head_stride, const T* packed, T* y,
                    std::int64_t rows, std::int64_t heads, std::int64_t in, std::int64_t out);

}  // namespace pipezoo
