#include "recurrence.h"

#include <algorithm>
#include <cmath>

#include "tiles.h"

namespace pipezoo {
namespace {

constexpr int kBlock = 4;          // vectors of a state's columns that are computed together: their sums do not wait
constexpr float kLeast = 1e-6f;    // added to the sum of squares of a query or key
constexpr float kSteep = 20.0f;    // from here on softplus is its argument

template <typename T>
float number_at(const T* from) {
    return first(load(from, first_lanes(1)));
}

float softplus(float x) { return x > kSteep ? x : std::log1p(std::exp(x)); }

// to = `factor` · from / |from|.
template <typename T>
void normalize(const T* from, float* to, std::int64_t size, float factor) {
    Vector squares = zeros();
    for (std::int64_t i = 0; i < size; i += kLanes) {
        const Vector numbers = load(from + i, first_lanes(size - i));
        squares = add_product(squares, numbers, numbers);
    }
    const Vector scale = all(factor / std::sqrt(sum(squares) + kLeast));
    for (std::int64_t i = 0; i < size; i += kLanes) {
        const Mask lanes = first_lanes(size - i);
        store(to + i, load(from + i, lanes) * scale, lanes);
    }
}

// Some columns of one head's state, where a request's rows find them: `rows` times `columns`, `stride` numbers apart.
void begin_state(float* state, std::int64_t slot_size, std::int64_t read, std::int64_t write, std::int64_t rows,
                 std::int64_t columns, std::int64_t stride) {
    if (read == write) return;
    for (std::int64_t i = 0; i < rows; ++i) {
        float* to = state + write * slot_size + i * stride;
        if (read < 0)
            std::fill_n(to, columns, 0.0f);
        else
            std::copy_n(state + read * slot_size + i * stride, columns, to);
    }
}

// Some columns of the state of one head and request, and the rows that change it.
struct Block {
    float* state;  // `stride` numbers from row to row
    std::int64_t stride, head, column, columns, begin, end;
    bool is_whole;  // `kBlock` vectors wide, else one, of which `columns` numbers are there
};

// Calls `work` with each block of a step: of states [slots, heads, rows, width]. It begins as its request's state.
template <typename Work>
void each_block(float* state, std::int64_t heads, std::int64_t rows, std::int64_t width, const StateStep& step, Work&& work) {
    const std::int64_t slot_size = heads * rows * width, whole = width / (kBlock * kLanes);
    const std::int64_t rest = width - whole * kBlock * kLanes, blocks = whole + (rest + kLanes - 1) / kLanes;
    on_team_each(heads * blocks * step.num_requests, step.num_rows() * slot_size, [&](std::int64_t unit) {
        const std::int64_t request = unit % step.num_requests, part = unit / step.num_requests;
        const std::int64_t head = part / blocks, number = part % blocks;
        const bool is_whole = number < whole;
        const std::int64_t column = (is_whole ? number * kBlock : number - whole + whole * kBlock) * kLanes;
        const std::int64_t columns = std::min<std::int64_t>(is_whole ? kBlock * kLanes : kLanes, width - column);
        const std::int64_t write = step.write_slots[request];
        float* of_head = state + head * rows * width + column;
        begin_state(of_head, slot_size, step.read_slots[request], write, rows, columns, width);
        work(Block{of_head + write * slot_size, width, head, column, columns, step.row_offsets[request],
                   step.row_offsets[request + 1], is_whole});
    });
}

// Reads and writes the columns of a block: all of each vector, or those of the only one that are there.
template <int vectors>
struct Columns {
    Mask lanes;

    template <typename T>
    PIPEZOO_INLINE Vector read(const T* from) const {
        return vectors == 1 ? load(from, lanes) : load(from);
    }
    template <typename T>
    PIPEZOO_INLINE void write(T* to, Vector value) const {
        vectors == 1 ? store(to, value, lanes) : store(to, value);
    }
};

// Calls `row` with the columns of a block, whose number of vectors is known when it is compiled.
template <typename Row>
PIPEZOO_INLINE void with_columns(const Block& block, Row&& row) {
    if (block.is_whole)
        row(Columns<kBlock>{all_lanes()});
    else
        row(Columns<1>{first_lanes(block.columns)});
}

// One row of one head: y = Sᵀq, after S has decayed and learned.
template <int vectors, typename T>
void learn(float* state, std::int64_t stride, const float* q, const float* k, std::int64_t key_size, const T* v, T* y,
           float decay, float strength, Columns<vectors> columns) {
    Vector learned[vectors], out[vectors];
#pragma GCC unroll 4
    for (int c = 0; c < vectors; ++c) learned[c] = out[c] = zeros();
    for (std::int64_t i = 0; i < key_size; ++i)
#pragma GCC unroll 4
        for (int c = 0; c < vectors; ++c)
            learned[c] = add_product(learned[c], all(k[i]), columns.read(state + i * stride + c * kLanes));
#pragma GCC unroll 4
    for (int c = 0; c < vectors; ++c)
        learned[c] = all(strength) * subtract_product(columns.read(v + c * kLanes), all(decay), learned[c]);
    for (std::int64_t i = 0; i < key_size; ++i) {
        float* row = state + i * stride;
#pragma GCC unroll 4
        for (int c = 0; c < vectors; ++c) {
            const Vector number = add_product(all(decay) * columns.read(row + c * kLanes), all(k[i]), learned[c]);
            out[c] = add_product(out[c], all(q[i]), number);
            columns.write(row + c * kLanes, number);
        }
    }
#pragma GCC unroll 4
    for (int c = 0; c < vectors; ++c) columns.write(y + c * kLanes, out[c]);
}

// One row of one head: y = SᵀC + skip · x, after S has decayed and B (length · x)ᵀ has come to it.
template <int vectors, typename T>
void scan(float* state, std::int64_t stride, const float* b, const float* c, std::int64_t state_size, const T* x, T* y,
          float decay, float length, float skip, Columns<vectors> columns) {
    Vector input[vectors], out[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
        const Vector numbers = columns.read(x + v * kLanes);
        input[v] = all(length) * numbers;
        out[v] = all(skip) * numbers;
    }
    for (std::int64_t i = 0; i < state_size; ++i) {
        float* row = state + i * stride;
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            const Vector number = add_product(all(decay) * columns.read(row + v * kLanes), all(b[i]), input[v]);
            out[v] = add_product(out[v], all(c[i]), number);
            columns.write(row + v * kLanes, number);
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) columns.write(y + v * kLanes, out[v]);
}

// to = from, in float32.
template <typename T>
void widen(const T* from, float* to, std::int64_t size) {
    for (std::int64_t i = 0; i < size; i += kLanes) {
        const Mask lanes = first_lanes(size - i);
        store(to + i, load(from + i, lanes), lanes);
    }
}

}  // namespace

template <typename T>
void short_convolution(const T* x, std::int64_t stride, const T* weight, const T* bias, float* state, T* y,
                       std::int64_t size, std::int64_t taps, bool is_activated, const StateStep& step) {
    const std::int64_t vectors = (size + kLanes - 1) / kLanes, kept = taps - 1;
    on_team_each(vectors * step.num_requests, step.num_rows() * size * taps, [&](std::int64_t unit) {
        const std::int64_t request = unit % step.num_requests, channel = unit / step.num_requests * kLanes;
        const std::int64_t begin = step.row_offsets[request], rows = step.row_offsets[request + 1] - begin;
        const std::int64_t read = step.read_slots[request], write = step.write_slots[request];
        const Mask lanes = first_lanes(size - channel);
        const auto input = [&](std::int64_t row) __attribute__((always_inline)) {
            if (row >= 0) return load(x + (begin + row) * stride + channel, lanes);
            return read < 0 ? zeros() : load(state + (read * kept + row + kept) * size + channel, lanes);
        };
        for (std::int64_t row = 0; row < rows; ++row) {
            Vector total = bias ? load(bias + channel, lanes) : zeros();
            for (std::int64_t tap = 0; tap < taps; ++tap)
                total = add_product(total, input(row - kept + tap), load(weight + tap * size + channel, lanes));
            store(y + (begin + row) * size + channel, is_activated ? silu(total) : total, lanes);
        }
        for (std::int64_t i = 0; i < kept; ++i)  // of one slot, what is written now is read no more
            store(state + (write * kept + i) * size + channel, input(rows - kept + i), lanes);
    });
}

template <typename T>
void gated_delta_rule(const DeltaRows<T>& rows, const float* decay_log, const float* decay_bias, float* state, T* y,
                      const StateStep& step, const DeltaSizes& sizes) {
    const std::int64_t dim = sizes.key_size, width = sizes.value_size, keys = sizes.key_heads * dim;
    const float shrunk = 1.0f / std::sqrt(float(dim));
    each_block(state, sizes.heads, dim, width, step, [&](const Block& block) {
        const std::int64_t head = block.head, key_head = head / (sizes.heads / sizes.key_heads);
        float *q = scratch<float>(2 * dim), *k = q + dim;
        const float rate = -std::exp(decay_log[head]), bias = decay_bias[head];
        for (std::int64_t row = block.begin; row < block.end; ++row) {
            const T* qkv = rows.qkv + row * rows.qkv_stride;
            normalize(qkv + key_head * dim, q, dim, shrunk);
            normalize(qkv + keys + key_head * dim, k, dim, 1.0f);
            const float decay = std::exp(rate * softplus(number_at(rows.a + row * rows.a_stride + head) + bias));
            const float strength = 1.0f / (1.0f + std::exp(-number_at(rows.b + row * rows.b_stride + head)));
            const T* v = qkv + 2 * keys + head * width + block.column;
            T* to = y + (row * sizes.heads + head) * width + block.column;
            with_columns(block, [&](auto columns) {
                learn(block.state, block.stride, q, k, dim, v, to, decay, strength, columns);
            });
        }
    });
}

template <typename T>
void selective_scan(const ScanRows<T>& rows, const ScanParameters& parameters, float* state, T* y, const StateStep& step,
                    const ScanSizes& sizes) {
    const std::int64_t dim = sizes.state_size, width = sizes.head_size;
    each_block(state, sizes.heads, dim, width, step, [&](const Block& block) {
        const std::int64_t head = block.head, group = head / (sizes.heads / sizes.groups);
        float *b = scratch<float>(2 * dim), *c = b + dim;
        const float* of_head = parameters.of_heads + head;
        const float rate = -std::exp(of_head[0]), bias = of_head[sizes.heads], skip = of_head[2 * sizes.heads];
        for (std::int64_t row = block.begin; row < block.end; ++row) {
            const T* x = rows.xbc + row * rows.xbc_stride;
            const T* b_of_row = x + sizes.heads * width + group * dim;
            widen(b_of_row, b, dim);
            widen(b_of_row + sizes.groups * dim, c, dim);
            float length = softplus(number_at(rows.dt + row * rows.dt_stride + head) + bias);
            length = std::min(std::max(length, parameters.shortest), parameters.longest);  // in this order NaN stays NaN
            const float decay = std::exp(rate * length);
            const T* from = x + head * width + block.column;
            T* to = y + (row * sizes.heads + head) * width + block.column;
            with_columns(block, [&](auto columns) {
                scan(block.state, block.stride, b, c, dim, from, to, decay, length, skip, columns);
            });
        }
    });
}

template <typename T>
void gated_rms_norm(const T* x, const T* weight, const T* gate, T* y, std::int64_t rows, std::int64_t heads,
                    std::int64_t size, std::int64_t weight_stride, std::int64_t gate_stride, float eps,
                    bool is_gated_first) {
    on_team_each(rows * heads, rows * heads * size, [&](std::int64_t unit) {
        const T* from = x + unit * size;
        const T* gates = gate + unit / heads * gate_stride + unit % heads * size;
        const T* weights = weight + unit % heads * weight_stride;
        float* gated = is_gated_first ? scratch<float>(size) : nullptr;
        Vector squares = zeros();
        for (std::int64_t i = 0; i < size; i += kLanes) {
            const Mask lanes = first_lanes(size - i);
            Vector value = load(from + i, lanes);
            if (is_gated_first) {
                value = value * silu(load(gates + i, lanes));
                store(gated + i, value, lanes);
            }
            squares = add_product(squares, value, value);
        }
        const Vector scale = all(1.0f / std::sqrt(sum(squares) / float(size) + eps));
        for (std::int64_t i = 0; i < size; i += kLanes) {
            const Mask lanes = first_lanes(size - i);
            Vector value = (is_gated_first ? load(gated + i, lanes) : load(from + i, lanes)) * scale;
            value = value * load(weights + i, lanes);
            store(y + unit * size + i, is_gated_first ? value : value * silu(load(gates + i, lanes)), lanes);
        }
    });
}

#define PIPEZOO_INSTANTIATE(T)                                                                                          \
    template void short_convolution<T>(const T*, std::int64_t, const T*, const T*, float*, T*, std::int64_t,            \
                                       std::int64_t, bool, const StateStep&);                                           \
    template void gated_delta_rule<T>(const DeltaRows<T>&, const float*, const float*, float*, T*, const StateStep&,    \
                                      const DeltaSizes&);                                                               \
    template void selective_scan<T>(const ScanRows<T>&, const ScanParameters&, float*, T*, const StateStep&,            \
                                    const ScanSizes&);                                                                  \
    template void gated_rms_norm<T>(const T*, const T*, const T*, T*, std::int64_t, std::int64_t, std::int64_t,         \
                                    std::int64_t, std::int64_t, float, bool);
PIPEZOO_INSTANTIATE(float)
PIPEZOO_INSTANTIATE(bfloat16)

}  // namespace pipezoo
