// rms_norm's kernel, executed on the emulator, against float64. Built twice, with fast and with checked kernels.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "rows/cuda/rms_norm_kernel.cuh"
#include "rows/element_type.h"
#include "simt/emulator/findings.h"
#include "simt/emulator/memory.h"
#include "simt/emulator/shadow.h"
#include "simt/row_kernels.h"

using namespace batchllm;
using namespace simt;
using namespace simt_test;

namespace {

constexpr Schedule kSchedules[] = {{Order::kAscending}, {Order::kDescending}};
constexpr float kEps = 1e-2f;

struct NormCase {
    int64_t num_rows, num_heads, size;
    int64_t padding;  // elements behind each head
    int64_t shift;    // elements that every tensor begins after an aligned address
};

const NormCase kCases[] = {
    {5, 1, 1, 0, 0},    {5, 1, 7, 0, 0},    {5, 1, 64, 0, 0},   {5, 3, 80, 0, 0},   {5, 3, 100, 0, 0},
    {5, 3, 64, 16, 8},  {5, 3, 128, 0, 1},  {2, 3, 80, 4, 0},   {2, 1, 256, 0, 0},  {2, 1, 256, 0, 1},
    {2, 1, 257, 0, 0},  {2, 1, 576, 0, 0},  {2, 2, 576, 3, 1},  {2, 1, 4096, 0, 0}, {1, 1, 4096, 0, 1},
    {1, 2, 8192, 8, 0}, {1, 1, 8192, 5, 0}, {1, 1, 8195, 0, 0}, {0, 1, 64, 0, 0},   {1, 0, 576, 0, 0},
    {3, 2, 0, 0, 0},
};

// A tensor [num_rows, num_heads, size] in the emulator's memory, NaN in the gaps.
template <typename T>
class Heads {
 public:
    Heads(const char* name, const NormCase& c, Use use, uint32_t seed)
        : case_(c), pitch_(c.size + c.padding), buffer_(name, (num_places() + c.shift) * sizeof(T), use) {
        std::mt19937 random(seed);
        std::normal_distribution<float> normal(0.0f, 3.0f);
        for (int64_t i = -c.shift; i < num_places(); ++i) at(0)[i] = from_float<T>(NAN);
        for (int64_t head = 0; head < c.num_rows * c.num_heads; ++head) {
            for (int64_t i = 0; i < c.size; ++i) at(head)[i] = from_float<T>(normal(random));
        }
    }
    HeadRows rows() const { return {at(0), case_.num_heads * pitch_, pitch_}; }
    T* at(int64_t head) const { return buffer_.template data<T>() + case_.shift + head * pitch_; }
    std::vector<float> values() const {  // gaps and all
        std::vector<float> values;
        for (int64_t i = 0; i < num_places(); ++i) values.push_back(to_float(at(0)[i]));
        return values;
    }

 private:
    int64_t num_places() const {  // the last head has no gap behind it
        const int64_t num_heads = case_.num_rows * case_.num_heads;
        return num_heads == 0 ? 0 : num_heads * pitch_ - case_.padding;
    }

    NormCase case_;
    int64_t pitch_;
    GlobalBuffer buffer_;
};

template <typename T>
RmsNormParams norm_params(const NormCase& c, const Heads<T>& x, const HeadRows& delta, const Heads<T>& weight,
                          const Heads<T>& out) {
    return {.dtype = kDType<T>,
            .x = x.rows(),
            .delta = delta,
            .weight = weight.at(0),
            .out = out.rows(),
            .num_heads = c.num_heads,
            .size = c.size,
            .eps = kEps};
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Returns x and out behind a run.
template <typename T>
std::pair<std::vector<float>, std::vector<float>> run_and_check(const NormCase& c, bool with_delta, bool in_place,
                                                                const Schedule& schedule) {
    checks_accesses() = SIMT_CHECKED;
    findings().clear();
    const Heads<T> x("x", c, with_delta || in_place ? Use::kOutput : Use::kInput, 1);
    const Heads<T> delta("delta", c, Use::kInput, 2);
    const Heads<T> weight("weight", {1, 1, c.size, 0, c.shift}, Use::kInput, 3);
    const Heads<T> other("out", c, Use::kOutput, 4);
    const Heads<T>& out = in_place ? x : other;

    // In float64, of the sum as T holds it.
    std::vector<float> sums = x.values();
    std::vector<double> expected(sums.begin(), sums.end());
    for (int64_t head = 0; head < c.num_rows * c.num_heads; ++head) {
        const int64_t first = x.at(head) - x.at(0);
        double squares = 0.0;
        for (int64_t i = 0; i < c.size; ++i) {
            float& sum = sums[first + i];
            if (with_delta) sum = to_float(from_float<T>(sum + to_float(delta.at(head)[i])));
            squares += static_cast<double>(sum) * sum;
        }
        const double scale = 1.0 / std::sqrt(squares / static_cast<double>(c.size) + kEps);
        for (int64_t i = 0; i < c.size; ++i) {
            expected[first + i] = scale * sums[first + i] * to_float(weight.at(0)[i]);
        }
    }

    run_rms_norm(norm_params(c, x, with_delta ? delta.rows() : HeadRows{}, weight, out), c.num_rows, schedule);
    INFO(describe_findings());
    REQUIRE(findings().empty());
    const std::vector<float> x_after = x.values(), out_after = out.values();
    if (!in_place) CHECK(same(x_after, sums));
    size_t num_wrong = 0;
    for (size_t i = 0; i < out_after.size(); ++i) {
        const double bound = (0.5 * kUlp<T> + 2e-6) * std::abs(expected[i]) + 0x1p-25;  // the last: of a subnormal half
        num_wrong +=
            std::isnan(expected[i]) ? !std::isnan(out_after[i]) : !(std::abs(out_after[i] - expected[i]) <= bound);
    }
    CHECK(num_wrong == 0);
    return {x_after, out_after};
}

}  // namespace

TEST_CASE_TEMPLATE("rms_norm is that of float64, whatever thread runs first", T, float, Bf16, Half) {
    for (const NormCase& c : kCases) {
        CAPTURE(&c - kCases);
        for (bool with_delta : {false, true}) {
            CAPTURE(with_delta);
            const auto first = run_and_check<T>(c, with_delta, false, kSchedules[0]);
            for (const Schedule& schedule : kSchedules) {
                const auto again = run_and_check<T>(c, with_delta, false, schedule);
                CHECK(same(again.first, first.first));
                CHECK(same(again.second, first.second));
                CHECK(same(run_and_check<T>(c, with_delta, true, schedule).second, first.second));
            }
        }
    }
}

TEST_CASE("a NaN or an infinity stays in its head") {
    const NormCase c{2, 3, 80, 0, 0};
    for (float special : {NAN, INFINITY}) {
        for (const Schedule& schedule : kSchedules) {
            checks_accesses() = SIMT_CHECKED;
            findings().clear();
            const Heads<Bf16> x("x", c, Use::kInput, 1), out("out", c, Use::kOutput, 2);
            const Heads<Bf16> weight("weight", {1, 1, c.size, 0, 0}, Use::kInput, 3);
            x.at(4)[7] = from_float<Bf16>(special);
            run_rms_norm(norm_params(c, x, {}, weight, out), c.num_rows, schedule);
            CHECK(findings().empty());
            for (int64_t head = 0; head < 6; ++head) {
                for (int64_t i = 0; i < c.size; ++i) {
                    const float value = to_float(out.at(head)[i]);
                    if (head != 4) {
                        CHECK(std::isfinite(value));
                    } else if (std::isnan(special) || i == 7) {
                        CHECK(std::isnan(value));
                    } else {
                        CHECK(value == 0.0f);
                    }
                }
            }
        }
    }
}

TEST_CASE("vectors are taken only where every pointer, stride and size allows it") {
    alignas(16) float memory[8] = {};
    const HeadRows rows{memory, 16, 8};
    RmsNormParams p{DType::kFloat32, rows, rows, memory, rows, 2, 8, kEps};
    CHECK(cuda::has_vectors<float>(p, 2));
    const auto needs = [&](auto& field, auto other) {
        const auto before = field;
        field = other;
        CHECK(!cuda::has_vectors<float>(p, 2));
        field = before;
    };
    for (HeadRows* heads : {&p.x, &p.delta, &p.out}) {
        needs(heads->data, memory + 1);
        needs(heads->row_stride, 18);
        needs(heads->head_stride, 18);
    }
    needs(p.weight, memory + 1);
    needs(p.size, 6);
    p.delta = {nullptr, 1, 1};  // none
    p.x.row_stride = 18;        // nobody uses it
    CHECK(cuda::has_vectors<float>(p, 1));
}
