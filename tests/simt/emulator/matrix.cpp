#include "simt/emulator/matrix.h"

#include <algorithm>
#include <cstring>

#include "base/bf16.h"
#include "base/half.h"
#include "simt/emulator/block.h"
#include "simt/emulator/memory.h"
#include "simt/emulator/shadow.h"
#include "simt/emulator/statistics.h"

namespace simt {
namespace {

using batchllm::Bf16;
using batchllm::Half;

struct ProductArgument {
    float (*c)[4];
    const uint32_t* a;
    const uint32_t* b;
};

template <typename T>
void unpack(uint32_t pair, float& low, float& high) {
    low = to_float(T{static_cast<uint16_t>(pair)});
    high = to_float(T{static_cast<uint16_t>(pair >> 16)});
}

using Row = float __attribute__((vector_size(64)));  // 16 columns

__attribute__((target_clones("avx512f", "avx2", "default"))) void multiply(const float (&a)[16][16], const Row (&b)[16],
                                                                           Row (&c)[16]) {
    for (int i = 0; i < 16; ++i) {
        Row sum = c[i];
        for (int k = 0; k < 16; ++k) sum += a[i][k] * b[k];
        c[i] = sum;
    }
}

// PTX ISA, "Matrix Fragments for mma.m16n8k16": lane = 4 * group + pair.
template <typename T>
void multiply_lanes(void* const* arguments, uint32_t) {
    ++statistics().products;
    alignas(64) float a[16][16], b[16][16], c[16][16];
    for (int lane = 0; lane < kWarpSize; ++lane) {
        const auto& argument = *static_cast<const ProductArgument*>(arguments[lane]);
        const int group = lane / 4, pair = lane % 4 * 2;
        for (int i = 0; i < 4; ++i) {
            const int row = group + i % 2 * 8, column = pair + i / 2 * 8;
            unpack<T>(argument.a[i], a[row][column], a[row][column + 1]);
            const int k = pair + i % 2 * 8, n = group + i / 2 * 8;
            unpack<T>(argument.b[i], b[k][n], b[k + 1][n]);
        }
        for (int half = 0; half < 2; ++half) {
            for (int i = 0; i < 4; ++i) c[group + i / 2 * 8][half * 8 + pair + i % 2] = argument.c[half][i];
        }
    }
    multiply(a, *reinterpret_cast<const Row(*)[16]>(&b), *reinterpret_cast<Row(*)[16]>(&c));
    for (int lane = 0; lane < kWarpSize; ++lane) {
        const auto& argument = *static_cast<const ProductArgument*>(arguments[lane]);
        const int group = lane / 4, pair = lane % 4 * 2;
        for (int half = 0; half < 2; ++half) {
            for (int i = 0; i < 4; ++i) argument.c[half][i] = c[group + i / 2 * 8][half * 8 + pair + i % 2];
        }
    }
}

struct LoadArgument {
    uint32_t* registers;
    const std::byte* row;
    bool transposed;
};

constexpr int kRowBytes = 16;

// A matrix's rows are read at once; rows in the same 16 bytes of the 128 that banks span need a pass each.
int num_conflicts(const std::byte* const (&rows)[8]) {
    const std::byte* seen[8][8];
    int num_seen[8] = {};
    for (const std::byte* row : rows) {
        const int banks = static_cast<int>(reinterpret_cast<uintptr_t>(row) / kRowBytes % 8);
        const auto end = seen[banks] + num_seen[banks];
        if (std::find(seen[banks], end, row) == end) seen[banks][num_seen[banks]++] = row;
    }
    return *std::max_element(num_seen, num_seen + 8) - 1;
}

void load_lanes(void* const* arguments, uint32_t) {
    ++statistics().matrix_loads;
    for (int i = 0; i < 4; ++i) {
        uint16_t matrix[8][8];
        const std::byte* rows[8];
        for (int row = 0; row < 8; ++row) {
            rows[row] = static_cast<const LoadArgument*>(arguments[i * 8 + row])->row;
            std::memcpy(matrix[row], rows[row], kRowBytes);
        }
        statistics().bank_conflicts += num_conflicts(rows);
        for (int lane = 0; lane < kWarpSize; ++lane) {
            const auto& argument = *static_cast<const LoadArgument*>(arguments[lane]);
            const int x = lane / 4, y = lane % 4 * 2;
            const uint16_t low = argument.transposed ? matrix[y][x] : matrix[x][y];
            const uint16_t high = argument.transposed ? matrix[y + 1][x] : matrix[x][y + 1];
            argument.registers[i] = low | uint32_t{high} << 16;
        }
    }
}

}  // namespace

void multiply_16x16x16(Float16 type, float (&c)[2][4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                       const Location& location) {
    ProductArgument argument{c, a, b};
    const Collective collective = type == Float16::kBf16 ? multiply_lanes<Bf16> : multiply_lanes<Half>;
    Block::running()->meet(~0u, collective, &argument, location);
}

void load_matrices(uint32_t (&registers)[4], const void* row, bool transposed, const Location& location) {
    const auto address = reinterpret_cast<uintptr_t>(row);
    if (address % kRowBytes != 0) return report(Kind::kMisaligned, location, "ldmatrix takes multiples of 16 bytes");
    if (!SharedMemory::instance().is_near(address)) {
        return report(Kind::kSharedBounds, location, "ldmatrix reads shared memory only");
    }
    check_access({row, kRowBytes, Access::kRead}, location);
    LoadArgument argument{registers, static_cast<const std::byte*>(row), transposed};
    Block::running()->meet(~0u, load_lanes, &argument, location);
}

}  // namespace simt
