#include "attention.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>

#include "attention_products.h"
#include "team.h"
#include "values_in_keys.h"

namespace pipezoo {
namespace {

constexpr int kMaxHeadDim = 576;  // checked by the caller

PIPEZOO_INLINE float number(const float* from) { return *from; }

PIPEZOO_INLINE float number(const bfloat16* from) {
    const std::uint32_t bits = std::uint32_t(*from) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Rotates numbers where they lie, one pair after the other.
template <typename T>
void rotate_numbers(const Rotation<T>& rotation, std::int64_t row, float* numbers) {
    const std::int64_t half = rotation.dim / 2;
    const T* cos = rotation.cos + row * rotation.dim;
    const T* sin = rotation.sin + row * rotation.dim;
    for (std::int64_t d = 0; d < half; ++d) {
        const float first = numbers[d], second = numbers[half + d];
        numbers[d] = first * number(cos + d) - second * number(sin + d);
        numbers[half + d] = first * number(sin + half + d) + second * number(cos + half + d);
    }
}

// to[i] = the i-th number of a head of a row, some of them rotated, where the halves of what is rotated are the pairs.
template <typename T>
PIPEZOO_INLINE void read_head(const T* from, const Rotation<T>& rotation, std::int64_t row, std::int64_t head_dim,
                              float* to) {
    for (std::int64_t d = 0; d < rotation.first; d += kLanes) store(to + d, load(from + d));
    from += rotation.first, to += rotation.first, head_dim -= rotation.first;
    const std::int64_t rotated = rotation.cos ? rotation.dim : 0;
    if (rotated % kPanel) {  // its halves do not begin with a vector
        for (std::int64_t d = 0; d < head_dim; d += kLanes) store(to + d, load(from + d));
        return rotate_numbers(rotation, row, to);
    }
    const T* cos = rotation.cos + row * rotated;
    const T* sin = rotation.sin + row * rotated;
    const std::int64_t half = rotated / 2;
    for (std::int64_t d = 0; d < half; d += kLanes) {
        const Vector first = load(from + d), second = load(from + half + d);
        store(to + d, product_less(first, load(cos + d), second * load(sin + d)));
        store(to + half + d, add_product(first * load(sin + half + d), second, load(cos + half + d)));
    }
    for (std::int64_t d = rotated; d < head_dim; d += kLanes) store(to + d, load(from + d));
}

// 0; NaN where a number of a head is NaN or infinite, for then it differs from itself.
template <typename T>
PIPEZOO_INLINE float nan_unless_finite(const T* head, std::int64_t head_dim) {
    Vector differences = zeros();
    for (std::int64_t d = 0; d < head_dim; d += kLanes) {
        const Vector numbers = load(head + d);
        differences = differences + (numbers - numbers);
    }
    return sum(differences);
}

constexpr std::int64_t kHalf = kBlock / 2;  // keys that lie in one page, of whatever size

// Keys of one head that are looked at together, and their values; null for those that lie in the keys. Its halves may lie in
// two pages.
template <typename T>
struct Block {
    const T* keys[2];
    const T* values[2];
    std::int64_t num_keys;

    std::int64_t num_keys_of(int half) const {
        return std::clamp<std::int64_t>(num_keys - half * kHalf, 0, kHalf);
    }
};

// What begins at a key of an item and ends at a multiple of kBlock: the size of pages changes no result.
template <typename T>
Block<T> block_at(const Step& step, const Item& item, std::int64_t head, std::int64_t key, const T* key_pages,
                  const T* value_pages) {
    const std::int32_t* pages = step.page_table + item.pages + key / step.page_size;
    const std::int64_t slot = key % step.page_size;
    Block<T> block{{}, {}, std::min(kBlock - key % kBlock, item.end_key - key)};
    const auto put = [&](int half, std::int64_t page, std::int64_t first) {
        const std::int64_t at = (page * step.num_kv_heads + head) * step.page_size + first;
        block.keys[half] = key_pages + at * step.head_dim;
        if (value_pages) block.values[half] = value_pages + at * step.value_dim;
    };
    put(0, pages[0], slot);
    if (block.num_keys <= kHalf) return block;
    if (slot + kHalf < step.page_size)
        put(1, pages[0], slot + kHalf);
    else
        put(1, pages[1], 0);
    return block;
}

template <typename T>
void fetch(const T* from, std::int64_t count) {
    for (std::int64_t i = 0; i < count; i += 64 / sizeof(T))
        _mm_prefetch(reinterpret_cast<const char*>(from + i), _MM_HINT_T1);
}

template <typename T>
void write_row(const Step& step, std::int64_t row, Rows<T> k, Rows<T> v, const Rotation<T>& rotation, T* key_pages,
               T* value_pages) {
    const std::int64_t dim = step.head_dim, value_dim = step.value_dim, slot = step.row_slots[row];
    constexpr int ps = kPerStep<T>;
    alignas(64) float numbers[kMaxHeadDim];
    alignas(64) T rounded[kMaxHeadDim];
    for (std::int64_t head = 0; head < step.num_kv_heads; ++head) {
        const std::int64_t page = (step.row_pages[row] * step.num_kv_heads + head) * step.page_size;
        read_head(k.row(row) + head * dim, rotation, row, dim, numbers);
        for (std::int64_t d = 0; d < dim; d += kLanes) store(rounded + d, finite(load(numbers + d)));
        T* key = key_pages + page * dim + slot / kPanel * kPanel * dim + slot % kPanel * ps;
        for (std::int64_t d = 0; d < dim; d += ps) std::memcpy(key + d * kPanel, rounded + d, ps * sizeof(T));
        if (!value_pages) continue;
        for (std::int64_t d = 0; d < value_dim; d += kLanes)
            store(rounded + d, finite(load(v.row(row) + head * value_dim + d)));
        T* value = value_pages + page * value_dim + slot / ps * value_dim * ps + slot % ps;
        for (std::int64_t d = 0; d < value_dim; ++d) value[d * ps] = rounded[d];
    }
}

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};

// What a thread works with; kept between calls.
template <typename T>
struct Workspace {
    std::unique_ptr<Left<T>[]> queries;      // [tiles, head_dim / per_step, kTileRows, per_step]
    std::unique_ptr<float[]> values;         // [rows, value_dim], not yet divided by the sum
    std::unique_ptr<float[]> maxima;         // [rows], of which there is room for more
    std::unique_ptr<float[]> sums;           // [rows, kLanes], likewise
    std::unique_ptr<T[], Free> block_values;  // of a block of keys that they lie in: see values_in_keys.h
    std::int64_t size = 0, block_size = 0;

    // Returns false where memory is short: no exception may leave a thread of a team.
    bool reserve(std::int64_t rows, std::int64_t dim) {
        const std::int64_t count = rows * dim;
        if (count <= size) return true;
        size = 0;
        queries.reset(new (std::nothrow) Left<T>[count]());
        values.reset(new (std::nothrow) float[count]);
        maxima.reset(new (std::nothrow) float[count]);
        sums.reset(new (std::nothrow) float[count * kLanes]);
        if (!queries || !values || !maxima || !sums) return false;
        size = count;
        return true;
    }

    // Likewise, for the values of a block.
    bool reserve_block(std::int64_t value_dim) {
        if (value_dim <= block_size) return true;
        block_size = 0;
        block_values.reset(static_cast<T*>(std::aligned_alloc(64, kBlock * value_dim * sizeof(T))));
        if (!block_values) return false;
        block_size = value_dim;
        return true;
    }
};

// 1 / (the sum of a row's weights and that of a sink), relative to the row's maximum.
template <typename T>
float share_beside(const T* sink, float maximum, float total) {
    const float score = number(sink), highest = std::max(maximum, score);
    const float own = first(exponential(all(maximum - highest))), other = first(exponential(all(score - highest)));
    return own / (total * own + other);
}

template <typename T>
class ItemWork {
   public:
    ItemWork(const Step& step, const Layer& layer, const Item& item, std::int64_t head, bool has_value_pages,
             Workspace<T>& workspace)
        : step_(step),
          layer_(layer),
          item_(item),
          head_(head),
          groups_(step.num_heads / step.num_kv_heads),
          rows_(item.num_queries * groups_),
          tiles_((rows_ + kTileRows - 1) / kTileRows),
          dim_(step.head_dim),
          value_dim_(step.value_dim),
          value_step_(has_value_pages ? step.value_dim * kPerStep<T> : kPanel * kPerStep<T>),
          value_column_(has_value_pages ? kPerStep<T> : kBlock),
          has_value_pages_(has_value_pages),
          space_(workspace) {}

    // Returns false where memory is short.
    bool begin() {
        if (!space_.reserve(tiles_ * kTileRows, std::max(dim_, value_dim_))) return false;
        if (!has_value_pages_ && !space_.reserve_block(value_dim_)) return false;
        std::fill_n(space_.maxima.get(), tiles_ * kTileRows, kLowest);
        std::fill_n(space_.sums.get(), tiles_ * kTileRows * kLanes, 0.0f);
        std::fill_n(space_.values.get(), tiles_ * kTileRows * value_dim_, 0.0f);
        return true;
    }

    // A row whose query, key or value is not finite asks with NaN, and so gets it: in pages there is nothing of it.
    void read_queries(Rows<T> q, Rows<T> k, Rows<T> v, const Rotation<T>& rotation) {
        constexpr int ps = kPerStep<T>;
        Vector spoiled = zeros();
        alignas(64) float numbers[kMaxHeadDim];
        alignas(64) Left<T> stored[kMaxHeadDim];
        for (std::int64_t r = 0; r < rows_; ++r) {
            const std::int64_t row = item_.row + r / groups_;
            read_head(q.row(row) + (head_ * groups_ + r % groups_) * dim_, rotation, row, dim_, numbers);
            if (r % groups_ == 0 && k.first)
                spoiled = all(nan_unless_finite(k.row(row) + head_ * dim_, dim_) +
                              (v.first ? nan_unless_finite(v.row(row) + head_ * value_dim_, value_dim_) : 0.0f));
            for (std::int64_t d = 0; d < dim_; d += kLanes) {
                const Vector query = load(numbers + d);
                store(stored + d, query + (spoiled + (query - query)));
            }
            Left<T>* to = space_.queries.get() + r / kTileRows * kTileRows * dim_ + r % kTileRows * ps;
            for (std::int64_t d = 0; d < dim_; d += ps) std::memcpy(to + d * kTileRows, stored + d, ps * sizeof(Left<T>));
        }
    }

    // While a block is looked at, the next one is fetched, and with the last the first of `next_item`: decodes see few
    // keys each, and would wait for the memory at every beginning.
    void look_at_keys(const T* key_pages, const T* value_pages, const Block<T>& next_item) {
        Block<T> block = block_at(step_, item_, head_, item_.first_key, key_pages, value_pages);
        for (std::int64_t key = item_.first_key; key < item_.end_key;) {
            const std::int64_t end = key + block.num_keys;
            Block<T> next = end < item_.end_key ? block_at(step_, item_, head_, end, key_pages, value_pages) : next_item;
            fetch_rest(block, next);
            if (!has_value_pages_) {
                T* values = space_.block_values.get();
                for (int half = 0; half < 2; ++half) {
                    T* to = values + half * kHalf * kPanel;
                    write_values(block.keys[half], block.num_keys_of(half), dim_, value_dim_, kBlock, to);
                    block.values[half] = next.values[half] = to;
                }
            }
            for (std::int64_t tile = 0; tile < tiles_; ++tile)
                if (tile_sees(tile, key, block.num_keys)) add_block(tile, key, block, tile == 0 ? next : block);
            key = end;
            block = next;
        }
    }

    void write(T* out, const T* sinks) const {
        for (std::int64_t r = 0; r < rows_; ++r) {
            const std::int64_t query_head = head_ * groups_ + r % groups_;
            const float total = sum(load(space_.sums.get() + r * kLanes));
            const float* values = space_.values.get() + r * value_dim_;
            if (item_.partial < 0) {
                const Vector share = all(sinks ? share_beside(sinks + query_head, space_.maxima[r], total) : 1.0f / total);
                T* to = out + ((item_.row + r / groups_) * step_.num_heads + query_head) * value_dim_;
                for (std::int64_t d = 0; d < value_dim_; d += kLanes) store(to + d, load(values + d) * share);
            } else {
                const std::int64_t partial = item_.partial + r / groups_;
                float* to = step_.partials + (partial * step_.num_heads + query_head) * (2 + value_dim_);
                to[0] = space_.maxima[r];
                to[1] = total;
                std::memcpy(to + 2, values, value_dim_ * sizeof(float));
            }
        }
    }

   private:
    // Fetches of the next block what is more than this one has; the products with this one fetch as much as it has.
    void fetch_rest(const Block<T>& block, const Block<T>& next) const {
        const auto rest = [&](int half, const T* from, std::int64_t unit, std::int64_t dim) {
            const std::int64_t done = (block.num_keys_of(half) + unit - 1) / unit * unit * dim;
            fetch(from + done, (next.num_keys_of(half) + unit - 1) / unit * unit * dim - done);
        };
        for (int half = 0; half < 2; ++half) {
            if (next.num_keys_of(half) <= block.num_keys_of(half)) continue;
            rest(half, next.keys[half], kPanel, dim_);
            if (has_value_pages_) rest(half, next.values[half], kPerStep<T>, value_dim_);
        }
    }

    std::int64_t position(std::int64_t r) const { return item_.position + r / groups_; }

    std::int64_t first_seen(std::int64_t r) const {
        const std::int64_t first = step_.window ? std::max<std::int64_t>(0, position(r) - step_.window + 1) : 0;
        return step_.chunk ? std::max(first, position(r) / step_.chunk * step_.chunk) : first;
    }

    std::int64_t last_row(std::int64_t tile) const { return std::min(rows_, (tile + 1) * kTileRows) - 1; }

    bool tile_sees(std::int64_t tile, std::int64_t key, std::int64_t num_keys) const {
        return position(last_row(tile)) >= key && first_seen(tile * kTileRows) < key + num_keys;
    }

    // Adds a block, which begins at `key`, to what the rows of a tile have seen.
    void add_block(std::int64_t tile, std::int64_t key, const Block<T>& block, const Block<T>& next) {
        const std::int64_t num_keys = block.num_keys;
        const std::int64_t row = tile * kTileRows;
        const int rows = int(std::min<std::int64_t>(kTileRows, rows_ - row));
        alignas(64) float scores[kTileRows][kBlock];
        alignas(64) Left<T> weights[kTileRows][kBlock];
        const Left<T>* queries = space_.queries.get() + row * dim_;
        for (std::int64_t j = 0; j < num_keys; j += kPanel) {
            const T* keys = block.keys[j / kHalf] + j % kHalf * dim_;
            const T* ahead = j < next.num_keys ? next.keys[j / kHalf] + j % kHalf * dim_ : keys;
            products_.score[rows - 1](queries, keys, dim_, ahead, &scores[0][j]);
        }
        float scale = float(layer_.scale);
        if (layer_.softcap != 0) {
            const Vector bound = all(float(layer_.softcap)), inner = all(float(layer_.scale / layer_.softcap));
            for (int i = 0; i < rows; ++i)
                for (std::int64_t j = 0; j < num_keys; j += kLanes)
                    store(&scores[i][j], hyperbolic_tangent(load(&scores[i][j]) * inner) * bound);
            scale = 1;
        }
        if (layer_.slopes) {
            for (int i = 0; i < rows; ++i)
                for (std::int64_t j = 0; j < num_keys; j += kLanes)
                    store(&scores[i][j], add_product(load(&scores[i][j]) * all(scale), slope(row + i),
                                                     numbers_from(key + j - position(row + i))));
            scale = 1;
        }
        alignas(64) float decay[kLanes];
        const bool all_seen = key + num_keys - 1 <= position(row) && first_seen(last_row(tile)) <= key;
        if (all_seen && num_keys == kBlock) {
            weigh(row, rows, kBlock, scale, scores, weights, decay, [](int, std::int64_t) { return all_lanes(); });
        } else {
            Mask seen[kTileRows][kBlock / kLanes];
            for (int i = 0; i < rows; ++i) {
                const std::int64_t end = std::min(num_keys, position(row + i) - key + 1);
                const std::int64_t begin = first_seen(row + i) - key;
                for (std::int64_t j = 0; j < num_keys; j += kLanes)
                    seen[i][j / kLanes] = without(first_lanes(end - j), first_lanes(begin - j));
            }
            weigh(row, rows, num_keys, scale, scores, weights, decay,
                      [&](int i, std::int64_t j) { return seen[i][j / kLanes]; });
        }
        // A block that lies in one piece is one product: its values begin a half, and a step, one after the other.
        const bool is_whole = !has_value_pages_ || block.values[1] == block.values[0] + kHalf * value_dim_;
        if (is_whole || num_keys <= kHalf) return add_values(row, rows, weights[0], 0, num_keys, block, next, decay);
        alignas(64) float kept[kLanes];
        store(kept, all(1.0f));
        add_values(row, rows, weights[0], 0, kHalf, block, next, decay);
        add_values(row, rows, weights[0] + kHalf, 1, num_keys - kHalf, block, next, kept);
    }

    // Adds the values of keys from a half of a block on, by their weights.
    void add_values(std::int64_t row, int rows, const Left<T>* weights, int half, std::int64_t num_keys,
                    const Block<T>& block, const Block<T>& next, const float* decay) {
        constexpr int ps = kPerStep<T>;
        float* sums = space_.values.get() + row * value_dim_;
        const std::int64_t steps = (num_keys + ps - 1) / ps;
        for (std::int64_t d = 0; d < value_dim_; d += kPanel) {
            const std::int64_t fetched = steps * ps * d;
            const bool has_more = fetched < (next.num_keys - half * kHalf) * value_dim_;
            const T* ahead = (has_more ? next : block).values[half] + fetched;
            products_.add[rows - 1](weights, block.values[half] + d * value_column_, value_step_, steps, ahead, decay,
                                    sums + d, value_dim_);
        }
    }

    // Turns a block's scores into weights, relative to the largest score of a row so far, and adds them to its sum. What
    // was summed before is to be multiplied by `decay`. The scores are multiplied by `scale`, which is not negative.
    template <typename Seen>
    PIPEZOO_INLINE void weigh(std::int64_t row, int rows, std::int64_t num_keys, float scale,
                              const float (&scores)[kTileRows][kBlock], Left<T> (&weights)[kTileRows][kBlock],
                              float (&decay)[kLanes], Seen&& seen) {
        float* maxima = space_.maxima.get() + row;
        alignas(64) float before[kLanes] = {}, after[kLanes] = {};
        for (int i = 0; i < rows; ++i) {
            Vector highest = all(kLowest);
            for (std::int64_t j = 0; j < num_keys; j += kLanes)
                highest = larger_in(seen(i, j), highest, load(&scores[i][j]));
            before[i] = maxima[i];
            maxima[i] = after[i] = std::max(before[i], largest(highest) * scale);
        }
        store(decay, exponential(load(before) - load(after)));
        for (int i = 0; i < rows; ++i) {
            float* sums = space_.sums.get() + (row + i) * kLanes;
            Vector total = load(sums) * all(decay[i]);
            for (std::int64_t j = 0; j < num_keys; j += kLanes) {
                const Vector relative = product_less(load(&scores[i][j]), all(scale), all(after[i]));
                const Vector weight = where(seen(i, j), exponential(relative));
                total = total + weight;
                store(&weights[i][j], weight);
            }
            store(sums, total);
        }
    }

    Vector slope(std::int64_t r) const { return all(layer_.slopes[head_ * groups_ + r % groups_]); }

    const Step& step_;
    const Layer& layer_;
    const Item& item_;
    const std::int64_t head_, groups_, rows_, tiles_, dim_, value_dim_;
    const std::int64_t value_step_, value_column_;  // how far the values of the next step of keys, or number, lie
    const bool has_value_pages_;
    Workspace<T>& space_;
    const AttentionProducts<T>& products_ = attention_products<T>();
};

// Joins the partial results of a row: each is weighted by how far its maximum is from the largest.
template <typename T>
void join(const Step& step, const Split& split, std::int64_t head, const T* sinks, T* out) {
    const std::int64_t dim = step.value_dim;
    const auto partial_at = [&](int p) {
        return step.partials + (step.partial_numbers[split.first + p] * step.num_heads + head) * (2 + dim);
    };
    float highest = kLowest;
    for (int p = 0; p < split.num_partials; ++p) highest = std::max(highest, *partial_at(p));
    float sum = 0;
    alignas(64) float values[kMaxHeadDim];
    std::fill_n(values, dim, 0.0f);
    for (int p = 0; p < split.num_partials; ++p) {
        const float* partial = partial_at(p);
        const Vector share = exponential(all(partial[0] - highest));
        sum += first(share) * partial[1];
        for (std::int64_t d = 0; d < dim; d += kLanes)
            store(values + d, add_product(load(values + d), load(partial + 2 + d), share));
    }
    T* to = out + (split.row * step.num_heads + head) * dim;
    const Vector share = all(sinks ? share_beside(sinks + head, highest, sum) : 1.0f);
    for (std::int64_t d = 0; d < dim; d += kLanes)
        store(to + d, sinks ? load(values + d) * share : load(values + d) / all(sum));
}

}  // namespace

template <typename T>
void attend(Rows<T> q, Rows<T> k, Rows<T> v, Rotation<T> rotation, T* key_pages, T* value_pages, T* out,
            const Step& step, const Layer& layer, const T* sinks) {
    const std::int64_t num_work = step.num_items * step.num_kv_heads;
    std::atomic<bool> is_short{false};
    on_team([&](Team& team) {
        if (k.first) {
            team.each(step.num_rows, [&](std::int64_t row) {
                write_row(step, row, k, v, rotation, key_pages, value_pages);
            });
            team.barrier();
        }
        thread_local Workspace<T> workspace;
        const auto begin_of = [&](std::int64_t i) {
            const Item& item = step.items[i % step.num_items];
            return block_at<T>(step, item, i / step.num_items, item.first_key, key_pages, value_pages);
        };
        for (std::int64_t i = team.take(), next; i < num_work; i = next) {
            next = team.take();
            ItemWork<T> work(step, layer, step.items[i % step.num_items], i / step.num_items, value_pages != nullptr,
                             workspace);
            if (!work.begin()) {
                is_short = true;
                continue;
            }
            work.read_queries(q, k, v, rotation);
            work.look_at_keys(key_pages, value_pages, begin_of(std::min(next, num_work - 1)));
            work.write(out, sinks);
        }
        if (step.num_splits == 0) return;
        team.barrier();
        team.each(step.num_splits * step.num_heads, [&](std::int64_t i) {
            join(step, step.splits[i / step.num_heads], i % step.num_heads, sinks, out);
        });
    });
    if (is_short) throw std::bad_alloc();
}

#define PIPEZOO_INSTANTIATE(T)                                                                           \
    template void attend<T>(Rows<T>, Rows<T>, Rows<T>, Rotation<T>, T*, T*, T*, const Step&, const Layer&, \
                            const T*);
PIPEZOO_INSTANTIATE(float)
PIPEZOO_INSTANTIATE(bfloat16)

}  // namespace pipezoo
