#include "e4m3.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "spans.h"
#include "tiles.h"

namespace pipezoo {
namespace {

bool is_nan_e4m3(std::uint8_t number) { return (number & 0x7F) == 0x7F; }

// Puts a row's numbers and scales into its column of a panel.
template <std::int64_t block>
void put_row(const std::uint8_t* row, std::uint8_t* panel, std::int64_t column, std::int64_t in) {
    std::uint8_t* numbers = panel + spans_of(in) * kPanel * sizeof(float);
    for (std::int64_t span = 0; span * kSpan < in; ++span) {
        float scale;
        std::memcpy(&scale, row, sizeof scale);
        for (std::int64_t k = span * kSpan; k < std::min(in, (span + 1) * kSpan); ++k) {
            if (k % block == 0) row += sizeof scale;
            if (is_nan_e4m3(*row)) scale = std::numeric_limits<float>::quiet_NaN();
            numbers[(k / kPerCodes * kPanel + column) * kPerCodes + k % kPerCodes] = stored_e4m3(*row++);
        }
        scale *= kScaleOfE4M3;
        std::memcpy(panel + (span * kPanel + column) * sizeof scale, &scale, sizeof scale);
    }
}

}  // namespace

template <std::int64_t block>
void pack_e4m3(const std::uint8_t* rows, std::uint8_t* packed, std::int64_t out, std::int64_t in, Form form) {
    const std::int64_t panels = (out + kPanel - 1) / kPanel, size = panel_bytes_e4m3(in);
    const std::int64_t row_bytes = in / block * (block + std::int64_t(sizeof(float)));
#pragma omp parallel for
    for (std::int64_t panel = 0; panel < panels; ++panel) {
        std::memset(packed + panel * size, 0, size);
        const std::int64_t columns = std::min<std::int64_t>(kPanel, out - panel * kPanel);
        for (std::int64_t column = 0; column < columns; ++column)
            put_row<block>(rows + row_of(panel * kPanel + column, out, form) * row_bytes, packed + panel * size, column, in);
    }
}

template void pack_e4m3<128>(const std::uint8_t*, std::uint8_t*, std::int64_t, std::int64_t, Form);
template void pack_e4m3<64>(const std::uint8_t*, std::uint8_t*, std::int64_t, std::int64_t, Form);
template void pack_e4m3<32>(const std::uint8_t*, std::uint8_t*, std::int64_t, std::int64_t, Form);

template <typename T>
void packed_rows_e4m3(const std::int64_t* tokens, const std::uint8_t* packed, T* y, std::int64_t rows, std::int64_t in,
                      std::int64_t out) {
    on_team_each(rows, rows * in, [&](std::int64_t row) {
        if (!is_index(tokens[row], out)) return write_nan(y + row * in, in);
        const std::int64_t column = tokens[row] % kPanel, lane = column % kLanes;
        const std::uint8_t* panel = packed + tokens[row] / kPanel * panel_bytes_e4m3(in);
        const float* scales = reinterpret_cast<const float*>(panel);
        const std::uint8_t* codes = panel + spans_of(in) * kPanel * sizeof(float) + (column - lane) * kPerCodes;
        for (std::int64_t k = 0; k < in; ++k, codes += k % kPerCodes ? 0 : kPanel * kPerCodes) {
            alignas(64) float numbers[kPerCodes][kLanes];
            Vector columns[kPerCodes];
            load_e4m3(codes, columns, static_cast<const float*>(nullptr));
            for (int n = 0; n < kPerCodes; ++n) store(numbers[n], columns[n]);
            const float value = numbers[k % kPerCodes][lane] * scales[k / kSpan * kPanel + column];
            store(y + row * in + k, all(value), first_lanes(1));
        }
    });
}

#define PIPEZOO_INSTANTIATE(T)                                                                                    \
    template void packed_rows_e4m3<T>(const std::int64_t*, const std::uint8_t*, T*, std::int64_t, std::int64_t, \
                                      std::int64_t);
PIPEZOO_INSTANTIATE(float)
PIPEZOO_INSTANTIATE(bfloat16)

}  // namespace pipezoo
