// The CUDA threads of rotate and silu_and_mul, one by one on the CPU, against the CPU's own functions.
// These fuse products and sums where the processor can, and have an exp2 of their own, so results agree within
// roundings.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "attention/run_every_thread.h"
#include "rows/cuda/rotate_thread.h"
#include "rows/cuda/silu_and_mul_thread.h"
#include "rows/element_type.h"
#include "rows/row_ops.h"

using namespace batchllm;
using namespace batchllm::cuda;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct RowCase {
    int64_t num_rows, num_heads, size;
    int64_t padding;  // elements behind each head (or row)
    int64_t shift;    // elements that everything begins after an aligned address
    bool vectors;     // what has_vectors is to say
};

const RowCase kCases[] = {
    {0, 2, 64, 0, 0, true},   // no rows
    {3, 0, 64, 0, 0, true},   // no heads
    {1, 1, 16, 0, 0, true},   // one vector, or two
    {5, 3, 64, 0, 0, true},   //
    {5, 3, 80, 16, 8, true},  // aligned padding
    {5, 3, 64, 0, 1, false},  // pointers between two vectors
    {5, 3, 64, 2, 0, false},  // strides between two vectors
    {5, 3, 2, 0, 0, false},   // less than a vector
    {5, 3, 30, 0, 0, false},  // no whole vectors
    {1, 1, 64, 3, 0, true},   // a stride that nobody uses
    {9, 7, 128, 0, 0, true},  // several blocks, or launches
    {9, 7, 126, 4, 1, false},
};

// One number in nineteen is none, or lies on an edge.
template <typename T>
std::vector<T> noise(int64_t size, uint32_t seed) {
    constexpr float kSpecial[] = {kNan, INFINITY, -INFINITY, 0.0f, -0.0f, 100.0f, -100.0f};
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.0f, 4.0f);
    std::vector<T> values(size);
    for (T& value : values) {
        value = from_float<T>(random() % 19 == 0 ? kSpecial[random() % std::size(kSpecial)] : normal(random));
    }
    return values;
}

// call(data, dtype) by the CPU's functions. They do not take float16: there it is float32's result, rounded.
template <typename T, typename Call>
void on_cpu(std::vector<T>& data, const Call& call) {
    if constexpr (kDType<T> == DType::kFloat16) {
        std::vector<float> wide(data.size());
        for (size_t i = 0; i < data.size(); ++i) wide[i] = to_float(data[i]);
        call(wide.data(), DType::kFloat32);
        for (size_t i = 0; i < data.size(); ++i) data[i] = from_float<T>(wide[i]);
    } else {
        call(data.data(), kDType<T>);
    }
}

bool agree(float a, float b, float bound) {
    if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
    return a == b || std::abs(a - b) <= bound;
}

template <typename T>
void check_rotate(const RowCase& c, int64_t max_items) {
    const int64_t pitch = c.size + c.padding, angle_pitch = c.size / 2 + c.padding;
    std::vector<T> expected = noise<T>(c.num_rows * c.num_heads * pitch + c.shift, 5), got = expected;
    std::vector<float> cos, sin;
    for (int64_t i = 0; i < c.num_rows * angle_pitch + c.shift; ++i) {
        cos.push_back(std::cos(0.37f * static_cast<float>(i)));
        sin.push_back(std::sin(0.37f * static_cast<float>(i)));
    }
    const auto params = [&](void* x, DType dtype) {
        return RotateParams{.dtype = dtype,
                            .x = {x, c.num_heads * pitch, pitch},
                            .cos = cos.data() + c.shift,
                            .sin = sin.data() + c.shift,
                            .cos_stride = angle_pitch,
                            .sin_stride = angle_pitch,
                            .num_heads = c.num_heads,
                            .size = c.size};
    };
    on_cpu(expected, [&](auto* data, DType dtype) { rotate(params(data + c.shift, dtype), c.num_rows, 1); });
    const RotateParams ours = params(got.data() + c.shift, kDType<T>);
    CHECK(RotateWork<T, 1>::has_vectors(ours, c.num_rows) == c.vectors);
    with_work<RotateWork>(ours, c.num_rows, [&](const auto& work) { run_every_thread(work, max_items); });
    for (size_t i = 0; i < got.size(); ++i) {
        const float a = to_float(got[i]), b = to_float(expected[i]);
        CAPTURE(a);
        CAPTURE(b);
        CHECK(agree(a, b, kUlp<T> * std::abs(b) + 0x1p-23f * 40.0f));  // products reach 20, but for 100
    }
}

template <typename T>
void check_silu_and_mul(const RowCase& c, int64_t max_items) {
    const int64_t pitch = 2 * c.size + c.padding, out_pitch = c.size + c.padding;
    const std::vector<T> gate_up = noise<T>(c.num_rows * pitch + c.shift, 6);
    std::vector<T> expected = noise<T>(c.num_rows * out_pitch + c.shift, 7), got = expected;
    const auto params = [&](const void* from, void* out, DType dtype) {
        return SiluAndMulParams{.dtype = dtype,
                                .gate_up = from,
                                .gate_up_stride = pitch,
                                .out = out,
                                .out_stride = out_pitch,
                                .size = c.size};
    };
    std::vector<T> both = gate_up;
    both.insert(both.end(), expected.begin(), expected.end());
    on_cpu(both, [&](auto* data, DType dtype) {
        silu_and_mul(params(data + c.shift, data + gate_up.size() + c.shift, dtype), c.num_rows, 1);
    });
    expected.assign(both.begin() + static_cast<int64_t>(gate_up.size()), both.end());
    const SiluAndMulParams ours = params(gate_up.data() + c.shift, got.data() + c.shift, kDType<T>);
    CHECK(SiluAndMulWork<T, 1>::has_vectors(ours, c.num_rows) == c.vectors);
    with_work<SiluAndMulWork>(ours, c.num_rows, [&](const auto& work) { run_every_thread(work, max_items); });
    for (size_t i = 0; i < got.size(); ++i) {
        const float a = to_float(got[i]), b = to_float(expected[i]);
        CAPTURE(a);
        CAPTURE(b);
        // The exponents of gates up to 100 are rounded by 2^-17; what is below 1e-30 may be zero.
        CHECK(agree(a, b, (kUlp<T> + 0x1p-16f) * std::abs(b) + 1e-30f));
    }
}

}  // namespace

TEST_CASE_TEMPLATE("rotate: the threads turn what the CPU turns, and write nothing else", T, float, Bf16, Half) {
    for (const RowCase& c : kCases) {
        CAPTURE(&c - kCases);
        for (int64_t max_items : {int64_t{500}, kMaxItems}) check_rotate<T>(c, max_items);
    }
}

TEST_CASE_TEMPLATE("silu_and_mul: the threads gate what the CPU gates, and write nothing else", T, float, Bf16, Half) {
    for (const RowCase& c : kCases) {
        CAPTURE(&c - kCases);
        for (int64_t max_items : {int64_t{500}, kMaxItems}) check_silu_and_mul<T>(c, max_items);
    }
}

TEST_CASE("silu of a far gate is zero or the gate; NaN stays NaN") {
    for (float gate : {-INFINITY, -3e38f, -1e4f, -100.0f, 0.0f, -0.0f}) CHECK(silu(gate) == 0.0f);
    for (float gate : {100.0f, 1e4f, 3e38f, INFINITY}) CHECK(silu(gate) == gate);
    CHECK(std::isnan(silu(kNan)));
}

TEST_CASE("rows: vectors are taken only where every pointer, stride and size allows it") {
    alignas(16) float memory[16] = {};
    RotateParams r{.dtype = DType::kFloat32,
                   .x = {memory, 16, 8},
                   .cos = memory,
                   .sin = memory,
                   .cos_stride = 4,
                   .sin_stride = 4,
                   .num_heads = 2,
                   .size = 8};
    SiluAndMulParams s{
        .dtype = DType::kFloat32, .gate_up = memory, .gate_up_stride = 16, .out = memory, .out_stride = 8, .size = 8};
    const auto rotates = [&r] { return RotateWork<float, 1>::has_vectors(r, 2); };
    const auto gates = [&s] { return SiluAndMulWork<float, 1>::has_vectors(s, 2); };
    CHECK(rotates());
    CHECK(gates());
    const auto needs = [](auto& field, auto other, const auto& has_vectors) {
        const auto before = field;
        field = other;
        CHECK(!has_vectors());
        field = before;
    };
    for (int64_t* stride : {&r.x.row_stride, &r.x.head_stride, &r.cos_stride, &r.sin_stride})
        needs(*stride, 18, rotates);
    for (const float** angle : {&r.cos, &r.sin}) needs(*angle, memory + 1, rotates);
    needs(r.x.data, memory + 1, rotates);
    needs(r.size, 12, rotates);
    for (int64_t* stride : {&s.gate_up_stride, &s.out_stride}) needs(*stride, 18, gates);
    needs(s.gate_up, memory + 1, gates);
    needs(s.out, memory + 1, gates);
    needs(s.size, 6, gates);
}
