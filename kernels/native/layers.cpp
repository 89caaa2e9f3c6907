#include "layers.h"

#include <cmath>
#include <initializer_list>

#include "team.h"

namespace pipezoo {

template <typename T>
void rms_norm(const T* x, const T* weight, T* y, std::int64_t rows, std::int64_t size, std::int64_t heads,
              std::int64_t stride, float eps) {
    on_team_each(rows, rows * size, [&](std::int64_t row) {
        const T* from = x + row / heads * stride + row % heads * size;
        Vector squares = zeros();
        for (std::int64_t i = 0; i < size; i += kLanes) {
            const Vector value = load(from + i, first_lanes(size - i));
            squares = add_product(squares, value, value);
        }
        const float mean = sum(squares) / float(size);
        const Vector scale = all(1.0f / std::sqrt(mean + eps));
        for (std::int64_t i = 0; i < size; i += kLanes) {
            const Mask lanes = first_lanes(size - i);
            const Vector normalized = load(from + i, lanes) * scale;
            store(y + row * size + i, normalized * load(weight + i, lanes), lanes);
        }
    });
}

template <typename T>
void silu_multiply(const T* gate_up, T* y, std::int64_t rows, std::int64_t size) {
    on_team_each(rows, rows * size, [&](std::int64_t row) {
        const T* gates = gate_up + row * 2 * size;
        for (std::int64_t i = 0; i < size; i += kLanes) {
            const Mask lanes = first_lanes(size - i);
            const Vector gate = load(gates + i, lanes), up = load(gates + size + i, lanes);
            store(y + row * size + i, silu(gate) * up, lanes);
        }
    });
}

template <typename T>
void add(const T* x, const T* y, T* sum, std::int64_t count) {
    on_team_each((count + kLanes - 1) / kLanes, count, [&](std::int64_t vector) {
        const std::int64_t i = vector * kLanes;
        const Mask lanes = first_lanes(count - i);
        store(sum + i, load(x + i, lanes) + load(y + i, lanes), lanes);
    });
}

template <typename T>
void embedding(const std::int64_t* tokens, const T* weight, T* y, std::int64_t rows, std::int64_t size,
               std::int64_t vocabulary) {
    on_team_each(rows, rows * size, [&](std::int64_t row) {
        if (!is_index(tokens[row], vocabulary)) return write_nan(y + row * size, size);
        std::memcpy(y + row * size, weight + tokens[row] * size, size * sizeof(T));
    });
}

template <typename T>
void rotary_angles(const std::int64_t* positions, const float* frequencies, T* cos, T* sin, std::int64_t rows,
                   std::int64_t half, float scaling) {
    constexpr int kCosine = 16;  // takes as long as so many numbers
    on_team_each(rows, rows * half * kCosine, [&](std::int64_t row) {
        for (std::int64_t i = 0; i < half; i += kLanes) {
            alignas(64) float cosines[kLanes] = {}, sines[kLanes] = {};
            for (std::int64_t j = i; j < half && j < i + kLanes; ++j) {
                const float angle = float(positions[row]) * frequencies[j];
                cosines[j - i] = std::cos(angle) * scaling;
                sines[j - i] = std::sin(angle) * scaling;
            }
            const Mask lanes = first_lanes(half - i);
            for (const std::int64_t at : {row * 2 * half + i, row * 2 * half + half + i}) {
                store(cos + at, load(cosines), lanes);
                store(sin + at, load(sines), lanes);
            }
        }
    });
}

#define PIPEZOO_INSTANTIATE(T)                                                                             \
    template void rms_norm<T>(const T*, const T*, T*, std::int64_t, std::int64_t, std::int64_t, std::int64_t, float); \
    template void silu_multiply<T>(const T*, T*, std::int64_t, std::int64_t);                              \
    template void add<T>(const T*, const T*, T*, std::int64_t);                                            \
    template void embedding<T>(const std::int64_t*, const T*, T*, std::int64_t, std::int64_t, std::int64_t); \
    template void rotary_angles<T>(const std::int64_t*, const float*, T*, T*, std::int64_t, std::int64_t, float);
PIPEZOO_INSTANTIATE(float)
PIPEZOO_INSTANTIATE(bfloat16)

}  // namespace pipezoo
