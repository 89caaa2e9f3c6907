// Values that are the first numbers of the keys (multi-head latent attention: DeepSeek-V2, section 2.1), in the order in
// which a product reads values.
//
// Pages hold them once, as keys. The values of a block of keys are written anew when it is looked at: once for all query
// heads, which share the one key/value head, so that it is little beside their products.
#pragma once

#include <cstdint>

#include "simd.h"

namespace pipezoo {

// Writes the values of keys that lie in panels, as [value_dim / kPanel, room / per_step, kPanel, per_step].
//
// keys [num_keys / kPanel, head_dim / per_step, kPanel, per_step]; value_dim, at most head_dim, is a multiple of kPanel.
// Of the last panel more is read and written than is of use, up to its end; there is `room` for so many keys.
template <typename T>
void write_values(const T* keys, std::int64_t num_keys, std::int64_t head_dim, std::int64_t value_dim,
                  std::int64_t room, T* values) {
    constexpr int ps = kPerStep<T>, group = kLanes * ps;  // keys of a vector of words
    for (std::int64_t key = 0; key < num_keys; key += group) {
        const T* panel = keys + key / kPanel * kPanel * head_dim + key % kPanel * ps;
        for (std::int64_t d = 0; d < value_dim; d += kLanes) {
            Words words[kLanes];
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; i += ps) load_keys(panel + (d + i) * kPanel, words + i);
            transpose(words);
            T* to = values + d / kPanel * kPanel * room + key * kPanel + d % kPanel * ps;
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; ++i) store_words(to + i * kPanel * ps, words[i]);
        }
    }
}

}  // namespace pipezoo
