#include "stored.h"

#include <algorithm>
#include <cstring>

#include "tiles.h"

namespace pipezoo {
namespace {

constexpr int kSuper = 256;  // numbers of a block of the types with steps

// A block of a file, taken apart: numbers, and scales and minima as the packed form has them.
//
// Of types with blocks of 8 groups the scales are 8 bits, and the steps float16; of mxfp4 they are 8 bits; of others the
// scales are float16. Affine ones have a scale and a zero.
template <Packing packing>
struct Block {
    static constexpr int kNumbers = kGroup * kBlockGroups<packing>;

    std::uint8_t numbers[kNumbers];  // with kOffset added, or codes
    std::uint8_t scales[kNumbers / kGroup * kParts<packing>], minima[kNumbers / kGroup];
    std::uint16_t scale, minimum;  // of one group, or steps
    std::uint32_t affine_scale;    // the bits of a float32
    std::uint8_t zero;
};

std::uint16_t half_at(const std::uint8_t* from) {
    std::uint16_t half;
    std::memcpy(&half, from, sizeof half);
    return half;
}

std::uint16_t negative(std::uint16_t half) { return half ^ 0x8000; }

// float16 scale, [32] of q.
const std::uint8_t* take(const std::uint8_t* from, Block<Packing::int8>& block) {
    block.scale = half_at(from);
    for (int k = 0; k < kGroup; ++k) block.numbers[k] = std::uint8_t(from[2 + k] + kAdded);
    return from + 34;
}

// [16], numbers of the first half in the lower 4 bits and those of the second in the upper ones.
void take_halves(const std::uint8_t* from, int count, std::uint8_t* numbers) {
    for (int k = 0; k < count; ++k) numbers[k] = from[k] & 15, numbers[count + k] = from[k] >> 4;
}

// float16 scale, halves.
const std::uint8_t* take(const std::uint8_t* from, Block<Packing::q4_0>& block) {
    block.scale = half_at(from);
    take_halves(from + 2, 16, block.numbers);
    return from + 18;
}

// float16 scale and minimum, halves.
const std::uint8_t* take(const std::uint8_t* from, Block<Packing::q4_1>& block) {
    block.scale = half_at(from), block.minimum = half_at(from + 2);
    take_halves(from + 4, 16, block.numbers);
    return from + 20;
}

// Scales and minima of 6 bits, 8 of each in 12 bytes. A minimum is taken away: its step becomes negative.
template <typename T>
void take_scales(const std::uint8_t* from, T& block) {
    block.scale = half_at(from), block.minimum = negative(half_at(from + 2));
    const std::uint8_t* bytes = from + 4;
    for (int g = 0; g < 4; ++g) {
        block.scales[g] = bytes[g] & 63, block.minima[g] = bytes[4 + g] & 63;
        block.scales[4 + g] = std::uint8_t((bytes[8 + g] & 15) | (bytes[g] >> 6 << 4));
        block.minima[4 + g] = std::uint8_t((bytes[8 + g] >> 4) | (bytes[4 + g] >> 6 << 4));
    }
}

// Steps, scales and minima, 4 times halves of 32.
const std::uint8_t* take(const std::uint8_t* from, Block<Packing::q4_k>& block) {
    take_scales(from, block);
    for (int pair = 0; pair < 4; ++pair) take_halves(from + 16 + 32 * pair, kGroup, block.numbers + 64 * pair);
    return from + 144;
}

// Steps, scales and minima, [32] of fifth bits with one of each group, 4 times halves of 32.
const std::uint8_t* take(const std::uint8_t* from, Block<Packing::q5_k>& block) {
    take_scales(from, block);
    const std::uint8_t* fifth = from + 16;
    for (int pair = 0; pair < 4; ++pair) take_halves(from + 48 + 32 * pair, kGroup, block.numbers + 64 * pair);
    for (int k = 0; k < kSuper; ++k) block.numbers[k] |= std::uint8_t((fifth[k % 32] >> k / 32 & 1) << 4);
    return from + 176;
}

// For each of two halves 64 bytes of lower bits; for each 32 bytes of upper ones, two of each of 4 groups; [16] scales of
// 8 bits with a sign; the step.
const std::uint8_t* take(const std::uint8_t* from, Block<Packing::q6_k>& block) {
    for (int half = 0; half < 2; ++half) {
        std::uint8_t* numbers = block.numbers + 128 * half;
        const std::uint8_t* upper = from + 128 + 32 * half;
        take_halves(from + 64 * half, 64, numbers);
        for (int k = 0; k < 128; ++k) numbers[k] |= std::uint8_t((upper[k % 32] >> 2 * (k / 32) & 3) << 4);
    }
    std::memcpy(block.scales, from + 192, sizeof block.scales);
    block.scale = half_at(from + 208);
    return from + 210;
}

// float32 scale, the zero's byte, numbers: of 4 bits two in a byte.
template <Packing packing>
    requires kIsAffine<packing>
const std::uint8_t* take(const std::uint8_t* from, Block<packing>& block) {
    constexpr int count = Block<packing>::kNumbers;
    std::memcpy(&block.affine_scale, from, sizeof block.affine_scale);
    block.zero = from[4], from += 5;
    if constexpr (kIsAffine8<packing>)
        for (int k = 0; k < count; ++k) block.numbers[k] = std::uint8_t(from[k] - 128 + kAdded);
    else
        for (int k = 0; k < count; ++k) block.numbers[k] = from[k / 2] >> k % 2 * 4 & 15;
    return from + count * kBits<packing> / 8;
}

// Exponent, halves.
const std::uint8_t* take(const std::uint8_t* from, Block<Packing::mxfp4>& block) {
    block.scales[0] = from[0];
    take_halves(from + 1, 16, block.numbers);
    return from + 17;
}

// Scale and minimum, of 8 bits each, [16] of two numbers, the first in the lower half.
const std::uint8_t* take(const std::uint8_t* from, Block<Packing::int4>& block) {
    block.scales[0] = from[0], block.minima[0] = from[1];
    for (int k = 0; k < kGroup; ++k) block.numbers[k] = from[2 + k / 2] >> k % 2 * 4 & 15;
    return from + 18;
}

// Puts 4 numbers of a column where `load_step` finds them.
template <Packing packing>
void put_step(std::uint8_t* group, int step, int column, std::uint32_t four) {
    constexpr int vector = kLanes * kPerInt, width = kBits<packing> - 4;
    std::uint8_t* to = group + kScaleBytes<packing>;
    const auto put = [](std::uint8_t* at, std::uint32_t bits) {
        std::uint32_t there;
        std::memcpy(&there, at, sizeof there);
        there |= bits;
        std::memcpy(at, &there, sizeof there);
    };
    if constexpr (kBits<packing> == 8) return put(to + (step * kPanel + column) * kPerInt, four);
    const int half = column / kLanes, in_vector = column % kLanes * kPerInt;
    put(to + step * vector + in_vector, (four & 0x0F0F0F0F) << 4 * half);
    if constexpr (width > 0) {
        const int place = (2 * step + half) * width;
        put(to + kSteps * vector + place / 8 * vector + in_vector,
            (four >> 4 & 0x01010101 * ((1 << width) - 1)) << place % 8);
    }
}

template <Packing packing>
void put_block(const Block<packing>& block, std::uint8_t* steps, int column) {
    constexpr int parts = kParts<packing>;
    if constexpr (kHasBlocks<packing>) {
        std::memcpy(steps + column * 2, &block.scale, 2);
        if constexpr (kHasMinima<packing>) std::memcpy(steps + (kPanel + column) * 2, &block.minimum, 2);
    }
    if constexpr (kIsAffine4<packing>) {
        const std::uint16_t upper = std::uint16_t(block.affine_scale >> 16);
        std::memcpy(steps + column * 2, &upper, 2);
        steps[kPanel * 2 + column] = std::uint8_t((block.affine_scale >> 8 & 0xE0) | block.zero);
    }
    if constexpr (kIsAffine8<packing>) {
        std::memcpy(steps + column * 4, &block.affine_scale, 4);
        steps[kPanel * 4 + column] = block.zero;
    }
    std::uint8_t* group = steps + kStepBytes<packing>;
    for (int g = 0; g < kBlockGroups<packing>; ++g, group += kGroupBytes<packing>) {
        if constexpr (kHasBlocks<packing> || packing == Packing::mxfp4 || packing == Packing::int4) {
            for (int part = 0; part < parts; ++part) group[part * kPanel + column] = block.scales[g * parts + part];
            if constexpr (kHasMinima<packing>) group[kPanel + column] = block.minima[g];
        } else if constexpr (!kIsAffine<packing>) {
            std::memcpy(group + column * 2, &block.scale, 2);
            if constexpr (packing == Packing::q4_1) std::memcpy(group + (kPanel + column) * 2, &block.minimum, 2);
        }
        for (int step = 0; step < kSteps; ++step) {
            std::uint32_t four;
            std::memcpy(&four, block.numbers + g * kGroup + step * kPerInt, sizeof four);
            put_step<packing>(group, step, column, four);
        }
    }
}

}  // namespace

template <Packing packing>
void pack_stored(const std::uint8_t* rows, std::uint8_t* packed, std::int64_t out, std::int64_t in, Form form) {
    const std::int64_t panels = (out + kPanel - 1) / kPanel, blocks = in / Block<packing>::kNumbers;
    Block<packing> measured;
    const std::int64_t block_bytes = take(rows, measured) - rows;
    constexpr std::int64_t head_bytes = kHeadBytes<packing> / kPanel;  // of a row, its steps
    const std::int64_t row_bytes = head_bytes + blocks * block_bytes;
#pragma omp parallel for
    for (std::int64_t panel = 0; panel < panels; ++panel) {
        std::uint8_t* to = packed + panel * panel_bytes<packing>(in / kGroup);
        std::memset(to, 0, panel_bytes<packing>(in / kGroup));
        const std::int64_t columns = std::min<std::int64_t>(kPanel, out - panel * kPanel);
        for (std::int64_t column = 0; column < columns; ++column) {
            const std::uint8_t* from = rows + row_of(panel * kPanel + column, out, form) * row_bytes;
            for (std::int64_t step = 0; step < head_bytes; step += sizeof(float), from += sizeof(float))
                std::memcpy(to + step * kPanel + column * sizeof(float), from, sizeof(float));
            for (std::int64_t i = 0; i < blocks; ++i) {
                Block<packing> block;
                from = take(from, block);
                put_block(block, to + kHeadBytes<packing> + i * kBlockBytesOf<packing>, int(column));
            }
        }
    }
}

#define PIPEZOO_INSTANTIATE(packing) \
    template void pack_stored<packing>(const std::uint8_t*, std::uint8_t*, std::int64_t, std::int64_t, Form);
PIPEZOO_INSTANTIATE(Packing::int8)
PIPEZOO_INSTANTIATE(Packing::int4)
PIPEZOO_INSTANTIATE(Packing::q4_0)
PIPEZOO_INSTANTIATE(Packing::q4_1)
PIPEZOO_INSTANTIATE(Packing::q4_k)
PIPEZOO_INSTANTIATE(Packing::q5_k)
PIPEZOO_INSTANTIATE(Packing::q6_k)
PIPEZOO_INSTANTIATE(Packing::affine4_32)
PIPEZOO_INSTANTIATE(Packing::affine4_64)
PIPEZOO_INSTANTIATE(Packing::affine4_128)
PIPEZOO_INSTANTIATE(Packing::affine8_32)
PIPEZOO_INSTANTIATE(Packing::affine8_64)
PIPEZOO_INSTANTIATE(Packing::mxfp4)

}  // namespace pipezoo
