// Rows to 8 bits, and products of them back to numbers, by every instruction set of this machine, against plain loops
// in float64.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "rows/element_type.h"
#include "rows/row_ops.h"

using namespace batchllm;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kMax = std::numeric_limits<float>::max();
constexpr int64_t kNumRows = 5;
constexpr int64_t kPadding = 3;  // elements behind a row, which nobody may touch
constexpr uint8_t kUntouched = 0xab;
// Around one and four vectors, and two steps of each instruction set.
constexpr int64_t kSizes[] = {1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 100, 127, 129, 576};

template <typename Check>
void on_every_isa(const Check& check) {
    for (const CpuIsa isa : available_isas()) {
        CAPTURE(std::string(name(isa)));
        check(row_kernels_for(isa));
    }
}

std::vector<float> normal(int64_t num, uint32_t seed, float scale = 1.0f) {
    std::mt19937 random(seed);
    std::normal_distribution<float> distribution(0.0f, scale);
    std::vector<float> values(num);
    for (float& value : values) value = distribution(random);
    return values;
}

// kNumRows rows in 8 bits, of which kernels take those in between: nobody may touch the first and the last.
class Quantized {
 public:
    explicit Quantized(int64_t size)
        : size_(size), data_(kNumRows * (size + kPadding), kUntouched), scales_(kNumRows, -1.0f) {}

    QuantizedRows rows() { return {data_.data(), size_ + kPadding, scales_.data()}; }
    float scale(int64_t row) const { return scales_[row]; }
    int byte(int64_t row, int64_t i) const { return data_[row * (size_ + kPadding) + i]; }

    // The row stands for `expected` to half a step, but for the rounding of float32, and its largest is at the end.
    void check_row(int64_t row, const std::vector<double>& expected) const {
        double largest = 0.0;
        for (const double value : expected) largest = std::max(largest, std::fabs(value));
        CHECK(scale(row) == doctest::Approx(largest / 127).epsilon(1e-5));
        int largest_byte = 0;
        for (int64_t i = 0; i < size_; ++i) {
            const int value = byte(row, i) - 128;
            largest_byte = std::max(largest_byte, std::abs(value));
            if (std::fabs(value - expected[i] / scale(row)) > 0.502) FAIL_CHECK("row ", row, ", element ", i);
        }
        CHECK(largest_byte == 127);
    }

    void check_nothing_else_is_written() const {
        bool is_untouched = scale(0) == -1.0f && scale(kNumRows - 1) == -1.0f;
        for (int64_t row = 0; row < kNumRows; ++row) {
            const bool is_written = row > 0 && row + 1 < kNumRows;
            for (int64_t i = is_written ? size_ : 0; i < size_ + kPadding; ++i) {
                is_untouched = is_untouched && byte(row, i) == kUntouched;
            }
        }
        CHECK(is_untouched);
    }

 private:
    int64_t size_;
    std::vector<uint8_t> data_;
    std::vector<float> scales_;
};

template <typename T>
Quantized quantized(const RowKernels& kernels, const std::vector<T>& x, int64_t size) {
    Quantized out(size);
    kernels.quantize_rows({kDType<T>, x.data(), size, out.rows(), size, 1}, 1, kNumRows - 1);
    out.check_nothing_else_is_written();
    return out;
}

// `row` is row 2.
Quantized quantized_row(const RowKernels& kernels, const std::vector<float>& row) {
    const auto size = static_cast<int64_t>(row.size());
    std::vector<float> x(kNumRows * size, 1.0f);
    std::copy(row.begin(), row.end(), x.begin() + 2 * size);
    return quantized(kernels, x, size);
}

// products * scales[row] (+ bias), as float64.
std::vector<double> scaled(const std::vector<float>& products, float scale, const std::vector<float>& bias,
                           int64_t row) {
    const auto size = static_cast<int64_t>(bias.size());
    std::vector<double> values(size);
    for (int64_t i = 0; i < size; ++i) values[i] = double{products[row * size + i]} * scale + bias[i];
    return values;
}

const std::vector<float> kScales{1.0f, 0.25f, 3.0f, 1e-3f, 1.0f};

}  // namespace

TEST_CASE_TEMPLATE("a row in 8 bits stands for its numbers to half a 127th of the largest", T, float, Bf16) {
    on_every_isa([](const RowKernels& kernels) {
        for (const int64_t size : kSizes) {
            CAPTURE(size);
            std::vector<T> x;
            std::vector<double> expected;
            for (const float value : normal(kNumRows * size, 1)) {
                const auto row = static_cast<float>(static_cast<int64_t>(x.size()) / size);
                x.push_back(from_float<T>(value * std::pow(10.0f, 12 * row - 24)));  // from 1e-12 to 1e12 in the middle
                expected.push_back(to_float(x.back()));
            }
            const Quantized out = quantized(kernels, x, size);
            for (int64_t row = 1; row + 1 < kNumRows; ++row) {
                out.check_row(row, {expected.begin() + row * size, expected.begin() + (row + 1) * size});
            }
        }
    });
}

TEST_CASE("the largest magnitude counts wherever it stands and whatever its sign") {
    on_every_isa([](const RowKernels& kernels) {
        for (const int64_t size : {1, 5, 17, 40, 130}) {
            for (int64_t at = 0; at < size; ++at) {
                std::vector<float> row(size, 0.5f);
                row[at] = at % 2 == 0 ? -127.0f : 127.0f;
                const Quantized out = quantized_row(kernels, row);
                CAPTURE(size);
                CAPTURE(at);
                CHECK(out.scale(2) == 1.0f);
                CHECK(out.byte(2, at) == (at % 2 == 0 ? 1 : 255));
            }
        }
    });
}

TEST_CASE("halves go to the even number") {
    std::vector<float> row;
    std::vector<int> expected;
    for (int i = -126; i < 126; ++i) {
        row.push_back(static_cast<float>(i) + 0.5f);
        expected.push_back((i % 2 == 0 ? i : i + 1) + 128);
    }
    row.push_back(127.0f);
    expected.push_back(255);
    on_every_isa([&](const RowKernels& kernels) {
        const Quantized out = quantized_row(kernels, row);
        for (int64_t i = 0; i < std::ssize(row); ++i) CHECK(out.byte(2, i) == expected[i]);
    });
}

TEST_CASE("rows of zeros, of the smallest and of the largest numbers") {
    on_every_isa([](const RowKernels& kernels) {
        for (const int64_t size : kSizes) {
            CAPTURE(size);
            for (const float value : {0.0f, -0.0f, std::numeric_limits<float>::denorm_min(), 1e-33f}) {
                const Quantized out = quantized_row(kernels, std::vector<float>(size, value));
                CHECK(out.scale(2) == 1e-30f / 127);
                for (int64_t i = 0; i < size; ++i) CHECK(out.byte(2, i) == 128);
            }
            for (const float value : {kMax, -kMax}) {
                const Quantized out = quantized_row(kernels, std::vector<float>(size, value));
                CHECK(out.scale(2) == kMax / 127);
                for (int64_t i = 0; i < size; ++i) CHECK(out.byte(2, i) == (value > 0 ? 255 : 1));
            }
        }
    });
}

TEST_CASE("NaN and infinity are told by the row's scale, wherever they stand") {
    on_every_isa([](const RowKernels& kernels) {
        for (const int64_t size : kSizes) {
            for (int64_t at = 0; at < size; ++at) {
                std::vector<float> row(size, 2.0f);
                row[at] = -INFINITY;
                CHECK(quantized_row(kernels, row).scale(2) == INFINITY);
                row[(at + 7) % size] = at % 2 == 0 ? kNan : -kNan;
                CHECK(std::isnan(quantized_row(kernels, row).scale(2)));
            }
        }
    });
}

TEST_CASE_TEMPLATE("products take their row's scale, then the bias, and are rounded once", T, float, Bf16) {
    on_every_isa([](const RowKernels& kernels) {
        for (const int64_t size : kSizes) {
            const std::vector<float> x = normal(kNumRows * size, 1), bias = normal(size, 2), none(size, 0.0f);
            for (const bool has_bias : {false, true}) {
                CAPTURE(size);
                CAPTURE(has_bias);
                const T before = from_float<T>(7.0f);
                std::vector<T> out(kNumRows * (size + kPadding), before);
                const ScaledRows rows{x.data(), size, kScales.data(), has_bias ? bias.data() : nullptr};
                kernels.dequantize_rows({kDType<T>, rows, out.data(), size + kPadding, size}, 1, kNumRows - 1);
                for (int64_t row = 0; row < kNumRows; ++row) {
                    const std::vector<double> expected = scaled(x, kScales[row], has_bias ? bias : none, row);
                    const bool is_written = row > 0 && row + 1 < kNumRows;
                    for (int64_t i = 0; i < size + kPadding; ++i) {
                        const float value = to_float(out[row * (size + kPadding) + i]);
                        if (!is_written || i >= size) {
                            CHECK(value == 7.0f);
                            continue;
                        }
                        const double magnitude = std::fabs(double{x[row * size + i]} * kScales[row]);
                        const double bound = kUlp<T> / 2 * std::fabs(expected[i]) + 0x1p-23 * (magnitude + 1e-30);
                        CHECK(std::fabs(value - expected[i]) <= bound);
                    }
                }
            }
        }
    });
}

TEST_CASE("norm_quantize adds the products to x, and only the scale tells of the norm") {
    on_every_isa([](const RowKernels& kernels) {
        for (const int64_t size : kSizes) {
            for (const float eps : {1e-5f, 10.0f}) {
                CAPTURE(size);
                CAPTURE(eps);
                std::vector<float> x = normal(kNumRows * size, 1), bias = normal(size, 3);
                const std::vector<float> before = x, delta = normal(kNumRows * size, 2);
                Quantized out(size);
                const ScaledRows deltas{delta.data(), size, kScales.data(), bias.data()};
                kernels.norm_quantize({x.data(), size, deltas, out.rows(), size, eps}, 1, kNumRows - 1);
                out.check_nothing_else_is_written();
                Quantized again(size);
                std::vector<float> sums = x;
                kernels.norm_quantize({sums.data(), size, {}, again.rows(), size, eps}, 1, kNumRows - 1);
                CHECK(sums == x);
                for (int64_t row = 0; row < kNumRows; ++row) {
                    const bool is_written = row > 0 && row + 1 < kNumRows;
                    std::vector<double> expected = scaled(delta, kScales[row], bias, row);
                    double squares = 0.0;
                    for (int64_t i = 0; i < size; ++i) {
                        const int64_t at = row * size + i;
                        expected[i] = is_written ? expected[i] + before[at] : before[at];
                        squares += expected[i] * expected[i];
                        const double magnitude = std::fabs(delta[at] * kScales[row]) + std::fabs(before[at]) + 5;
                        CHECK(std::fabs(x[at] - expected[i]) <= 0x1p-22 * magnitude);
                    }
                    if (!is_written) continue;
                    for (double& value : expected) value /= std::sqrt(squares / static_cast<double>(size) + eps);
                    out.check_row(row, expected);
                    again.check_row(row, expected);
                }
            }
        }
    });
}

TEST_CASE("silu_mul_quantize gates, and mixes its segments by an orthogonal Hadamard matrix") {
    struct Shape {
        int64_t size, num_segments;
    };
    on_every_isa([](const RowKernels& kernels) {
        for (const auto [size, num_segments] :
             {Shape{1, 1}, {33, 1}, {2, 2}, {12, 4}, {20, 2}, {48, 16}, {64, 64}, Shape{76, 4}, {264, 8}, {1536, 64}}) {
            CAPTURE(size);
            CAPTURE(num_segments);
            std::vector<float> gate_up = normal(kNumRows * 2 * size, 1, 4.0f);
            gate_up[2 * size + size / 2] = -2e4f;  // beyond the exponentials that float32 holds
            gate_up[2 * size] = 200.0f;
            const std::vector<float> before = gate_up, bias = normal(2 * size, 2);
            Quantized out(size);
            const ScaledRows rows{gate_up.data(), 2 * size, kScales.data(), bias.data()};
            kernels.silu_mul_quantize({rows, out.rows(), size, num_segments}, 1, kNumRows - 1);
            out.check_nothing_else_is_written();
            CHECK(gate_up == before);
            const int64_t segment = size / num_segments;
            for (int64_t row = 1; row + 1 < kNumRows; ++row) {
                const std::vector<double> numbers = scaled(gate_up, kScales[row], bias, row);
                std::vector<double> gated(size), mixed(size);
                for (int64_t i = 0; i < size; ++i) {
                    gated[i] = numbers[i] / (1 + std::exp(-numbers[i])) * numbers[size + i];
                }
                for (int64_t i = 0; i < size; ++i) {
                    for (int64_t from = 0; from < num_segments; ++from) {
                        const bool is_minus = std::popcount(static_cast<uint64_t>(from & (i / segment))) % 2 == 1;
                        mixed[i] += (is_minus ? -1 : 1) * gated[from * segment + i % segment];
                    }
                    mixed[i] /= std::sqrt(static_cast<double>(num_segments));
                }
                out.check_row(row, mixed);
            }
        }
    });
}
