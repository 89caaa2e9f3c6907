#include "layers.h"

#include <cmath>
#include <initializer_list>

#include "team.h"

namespace pipezoo {

namespace {

// Calls compute(row, i, lanes) for each vector of all rows.
template <typename Compute>
void for_vectors(std::int64_t rows, std::int64_t size, Compute&& compute) {
    const std::int64_t vectors = (size + kLanes - 1) / kLanes;
    on_team_each(rows * vectors, rows * size, [&](std::int64_t vector) {
        const std::int64_t row = rows == 1 ? 0 : vector / vectors, i = (vector - row * vectors) * kLanes;
        compute(row, i, first_lanes(size - i));
    });
}

// y = function(x).
template <typename T, typename Function>
void map(const T* x, T* y, std::int64_t rows, std::int64_t size, std::int64_t stride, Function&& function) {
    if (stride == size) size *= rows, stride = size, rows = 1;
    for_vectors(rows, size, [&](std::int64_t row, std::int64_t i, Mask lanes) {
        store(y + row * size + i, function(load(x + row * stride + i, lanes)), lanes);
    });
}

// z = function(x, y).
template <typename T, typename Function>
void map(const T* x, const T* y, T* z, std::int64_t rows, std::int64_t size, std::int64_t x_stride,
         std::int64_t y_stride, Function&& function) {
    if (x_stride == size && y_stride == size) size *= rows, x_stride = y_stride = size, rows = 1;
    for_vectors(rows, size, [&](std::int64_t row, std::int64_t i, Mask lanes) {
        const Vector left = load(x + row * x_stride + i, lanes), right = load(y + row * y_stride + i, lanes);
        store(z + row * size + i, function(left, right), lanes);
    });
}

}  // namespace

template <typename T>
void rms_norm(const T* x, const T* weight, T* y, std::int64_t rows, std::int64_t size, std::int64_t heads,
              std::int64_t stride, float eps, float offset) {
    on_team_each(rows, rows * size, [&](std::int64_t row) {
        const T* from = x + row / heads * stride + row % heads * size;
        Vector squares = zeros();
        for (std::int64_t i = 0; i < size; i += kLanes) {
            const Vector value = load(from + i, first_lanes(size - i));
            squares = add_product(squares, value, value);
        }
        const float mean = sum(squares) / float(size);
        const Vector scale = all(1.0f / std::sqrt(mean + eps)), added = all(offset);
        for (std::int64_t i = 0; i < size; i += kLanes) {
            const Mask lanes = first_lanes(size - i);
            const Vector normalized = load(from + i, lanes) * scale;
            store(y + row * size + i, normalized * (load(weight + i, lanes) + added), lanes);
        }
    });
}

template <typename T>
void layer_norm(const T* x, const T* weight, const T* bias, T* y, std::int64_t rows, std::int64_t size,
                std::int64_t heads, std::int64_t stride, float eps) {
    on_team_each(rows, rows * size, [&](std::int64_t row) {
        const T* from = x + row / heads * stride + row % heads * size;
        Vector total = zeros(), squares = zeros();
        for (std::int64_t i = 0; i < size; i += kLanes) total = total + load(from + i, first_lanes(size - i));
        const Vector mean = all(sum(total) / float(size));
        for (std::int64_t i = 0; i < size; i += kLanes) {
            const Mask lanes = first_lanes(size - i);
            const Vector apart = where(lanes, load(from + i, lanes) - mean);
            squares = add_product(squares, apart, apart);
        }
        const Vector scale = all(1.0f / std::sqrt(sum(squares) / float(size) + eps));
        for (std::int64_t i = 0; i < size; i += kLanes) {
            const Mask lanes = first_lanes(size - i);
            Vector value = (load(from + i, lanes) - mean) * scale;
            if (weight) value = value * load(weight + i, lanes);
            if (bias) value = value + load(bias + i, lanes);
            store(y + row * size + i, value, lanes);
        }
    });
}

template <typename T>
void gated(const T* gate_up, T* y, std::int64_t rows, std::int64_t size, Activation activation) {
    on_team_each(rows, rows * size, [&](std::int64_t row) {
        const T* gates = gate_up + row * 2 * size;
        for (std::int64_t i = 0; i < size; i += kLanes) {
            const Mask lanes = first_lanes(size - i);
            const Vector gate = load(gates + i, lanes), up = load(gates + size + i, lanes);
            store(y + row * size + i, let_through(activation, gate, up), lanes);
        }
    });
}

template <typename T>
void activate(const T* x, T* y, std::int64_t rows, std::int64_t size, std::int64_t stride, Activation activation) {
    map(x, y, rows, size, stride, [=](Vector value) { return activated(activation, value); });
}

template <typename T>
void add(const T* x, const T* y, T* sum, std::int64_t rows, std::int64_t size, std::int64_t x_stride,
         std::int64_t y_stride, float factor) {
    map(x, y, sum, rows, size, x_stride, y_stride,
        [=](Vector left, Vector right) { return add_product(left, all(factor), right); });
}

template <typename T>
void multiply(const T* x, const T* y, T* product, std::int64_t rows, std::int64_t size, std::int64_t x_stride,
              std::int64_t y_stride) {
    map(x, y, product, rows, size, x_stride, y_stride, [](Vector left, Vector right) { return left * right; });
}

template <typename T>
void scale(const T* x, T* y, std::int64_t rows, std::int64_t size, std::int64_t stride, float factor) {
    map(x, y, rows, size, stride, [=](Vector value) { return all(factor) * value; });
}

template <typename T>
void clamp(const T* x, T* y, std::int64_t rows, std::int64_t size, std::int64_t stride, float low, float high) {
    map(x, y, rows, size, stride,
        [=](Vector value) { return smaller(all(high), larger(all(low), value)); });  // in this order NaN stays NaN
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

#define PIPEZOO_INSTANTIATE(T)                                                                                        \
    template void rms_norm<T>(const T*, const T*, T*, std::int64_t, std::int64_t, std::int64_t, std::int64_t, float, \
                              float);                                                                                 \
    template void layer_norm<T>(const T*, const T*, const T*, T*, std::int64_t, std::int64_t, std::int64_t,           \
                                std::int64_t, float);                                                                 \
    template void gated<T>(const T*, T*, std::int64_t, std::int64_t, Activation);                                     \
    template void activate<T>(const T*, T*, std::int64_t, std::int64_t, std::int64_t, Activation);                    \
    template void add<T>(const T*, const T*, T*, std::int64_t, std::int64_t, std::int64_t, std::int64_t, float);      \
    template void multiply<T>(const T*, const T*, T*, std::int64_t, std::int64_t, std::int64_t, std::int64_t);        \
    template void scale<T>(const T*, T*, std::int64_t, std::int64_t, std::int64_t, float);                            \
    template void clamp<T>(const T*, T*, std::int64_t, std::int64_t, std::int64_t, float, float);                     \
    template void embedding<T>(const std::int64_t*, const T*, T*, std::int64_t, std::int64_t, std::int64_t);          \
    template void rotary_angles<T>(const std::int64_t*, const float*, T*, T*, std::int64_t, std::int64_t, float);
PIPEZOO_INSTANTIATE(float)
PIPEZOO_INSTANTIATE(bfloat16)

}  // namespace pipezoo
