// sample's kernel, executed on the emulator, against the CPU's, which tests/rows/test_sample.py holds to float64. Built
// twice, with fast and with checked kernels.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "base/ints.h"
#include "rows/cuda/sample_kernel.cuh"
#include "rows/element_type.h"
#include "rows/row_ops.h"
#include "simt/emulator/findings.h"
#include "simt/emulator/memory.h"
#include "simt/emulator/shadow.h"
#include "simt/row_kernels.h"

using namespace batchllm;
using namespace simt;
using namespace simt_test;

namespace {

const Schedule kSchedules[] = {{Order::kAscending}, {Order::kDescending}};
constexpr float kLog2OfE = 1.44269504088896341f;  // as a temperature it makes of integers powers of two

struct Setting {
    float temperature;
    int32_t top_k;
    float top_p, min_p;
};

const Setting kSettings[] = {
    {0.0f, 3, 0.5f, 0.1f},      {kLog2OfE, 0, 1.0f, 0.0f}, {kLog2OfE, 1, 1.0f, 0.0f},       {kLog2OfE, 5, 1.0f, 0.0f},
    {kLog2OfE, 70, 1.0f, 0.0f}, {1.0f, 0, 0.5f, 0.0f},     {kLog2OfE, 0, 0.9375f, 0.0f},    {kLog2OfE, 0, 1e-9f, 0.0f},
    {kLog2OfE, 0, 1.0f, 0.25f}, {0.7f, 40, 0.75f, 0.0f},   {kLog2OfE, 30, 0.75f, 0.125f},   {3.0f, 0, 0.99f, 0.01f},
    {1e30f, 9, 0.5f, 0.5f},     {1e-5f, 0, 0.9f, 0.0f},    {kLog2OfE, 1000000, 1.0f, 1.0f},
};
constexpr double kUniforms[] = {0.0, 0.375, 0.5, 0.9999999999999999};

struct SampleCase {
    int64_t vocab_size;
    int64_t padding;   // elements behind each row
    int64_t shift;     // elements that logits begin after an aligned address
    bool is_integral;  // logits
};

const SampleCase kCases[] = {
    {1, 7, 0, true},   {7, 1, 0, true},    {8, 0, 1, false},    {255, 1, 0, true},   {256, 0, 0, false},
    {257, 7, 0, true}, {3000, 0, 0, true}, {3000, 0, 0, false}, {3000, 16, 3, true}, {12345, 7, 0, false},
};

struct Sampled {
    std::vector<int32_t> token_ids;
    std::vector<float> logprobs, lse;
};

bool same(const Sampled& a, const Sampled& b) {
    const auto same_bits = [](const auto& x, const auto& y) {
        return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * sizeof x[0]) == 0;
    };
    return same_bits(a.token_ids, b.token_ids) && same_bits(a.logprobs, b.logprobs) && same_bits(a.lse, b.lse);
}

template <typename V>
V* copy_to(const GlobalBuffer& buffer, const std::vector<V>& values) {
    return std::copy(values.begin(), values.end(), buffer.data<V>()) - values.size();
}

// Rows of logits, each with its parameters, a second set of logits that takes the place of some of them, and masks of
// some.
class Rows {
 public:
    Rows(const SampleCase& c, std::vector<Setting> settings, std::vector<double> uniforms)
        : c_(c), settings_(std::move(settings)), uniform_(std::move(uniforms)) {
        std::mt19937 random(11);
        std::normal_distribution<float> normal(0.0f, 3.0f);
        for (std::vector<float>* logits : {&logits_, &ruled_}) {
            for (int64_t i = 0; i < num_rows() * c.vocab_size; ++i) {
                const float x = random() % 16 == 0 ? -INFINITY : normal(random);
                logits->push_back(c.is_integral ? std::round(x) : x);
            }
            for (int64_t row = 0; row < num_rows(); ++row) (*logits)[row * c.vocab_size] = 1.0f;
        }
        for (int64_t i = 0; i < num_rows() * num_words(); ++i) {  // the first token of every row may be drawn
            const uint32_t word = random() % 4 == 0 ? 0xffffffff : random() % 3 == 0 ? 0 : random();
            allowed_.push_back(static_cast<int32_t>(word | (i % num_words() == 0)));
        }
        for (int64_t row = 0; row < num_rows(); ++row) {
            const auto other = static_cast<int32_t>(num_rows() - 1 - row);
            allowed_rows_.push_back(row % 4 == 0 ? -1 : row % 4 == 1 ? static_cast<int32_t>(num_rows()) : other);
            ruled_rows_.push_back(row % 3 == 0 ? -1 : row % 3 == 1 ? other : static_cast<int32_t>(num_rows()) + other);
        }
    }
    int64_t num_words() const { return ceil_div(c_.vocab_size, 32); }
    int64_t num_rows() const { return static_cast<int64_t>(settings_.size()); }
    float& logit(int64_t row, int64_t token) { return logits_[row * c_.vocab_size + token]; }

    // With logits rounded to T.
    template <typename T>
    Sampled on_cpu() const {
        std::vector<float> logits = logits_;
        for (float& logit : logits) logit = to_float(from_float<T>(logit));
        Sampled out = empty();
        SampleParams params = params_of(kDType<float>, logits.data(), ruled_.data(), c_.vocab_size);
        const Columns columns(*this);
        columns.give_to(params);
        params.ruled_rows = ruled_rows_.data();
        params.allowed = allowed_.data();
        params.allowed_rows = allowed_rows_.data();
        params.uniform = uniform_.data();
        params.token_ids = out.token_ids.data();
        params.logprobs = out.logprobs.data();
        params.lse = out.lse.data();
        sample(params, num_rows(), 1);
        return out;
    }

    template <typename T>
    Sampled on_emulator(const Schedule& schedule) const {
        checks_accesses() = SIMT_CHECKED;
        findings().clear();
        const size_t pitch = c_.vocab_size + c_.padding, num_places = c_.shift + num_rows() * pitch;
        const GlobalBuffer logits("logits", num_places * sizeof(T), Use::kInput);
        const GlobalBuffer ruled("ruled_logits", num_places * sizeof(float), Use::kInput);
        SampleParams params = params_of(kDType<T>, laid_out<T>(logits, logits_), laid_out<float>(ruled, ruled_), pitch);
        const Columns columns(*this);
        const size_t column_bytes = num_rows() * 4;
        const GlobalBuffer temperature("temperature", column_bytes, Use::kInput);
        const GlobalBuffer top_k("top_k", column_bytes, Use::kInput), top_p("top_p", column_bytes, Use::kInput);
        const GlobalBuffer min_p("min_p", column_bytes, Use::kInput), uniform("uniform", num_rows() * 8, Use::kInput);
        const GlobalBuffer ruled_rows("ruled_rows", column_bytes, Use::kInput);
        const GlobalBuffer allowed("allowed", allowed_.size() * 4, Use::kInput);
        const GlobalBuffer allowed_rows("allowed_rows", column_bytes, Use::kInput);
        const GlobalBuffer token_ids("token_ids", column_bytes, Use::kOutput);
        const GlobalBuffer logprobs("logprobs", column_bytes, Use::kOutput), lse("lse", column_bytes, Use::kOutput);
        params.temperature = copy_to(temperature, columns.temperature);
        params.top_k = copy_to(top_k, columns.top_k);
        params.top_p = copy_to(top_p, columns.top_p);
        params.min_p = copy_to(min_p, columns.min_p);
        params.uniform = copy_to(uniform, uniform_);
        params.ruled_rows = copy_to(ruled_rows, ruled_rows_);
        params.allowed = copy_to(allowed, allowed_);
        params.allowed_rows = copy_to(allowed_rows, allowed_rows_);
        params.token_ids = token_ids.data<int32_t>();
        params.logprobs = logprobs.data<float>();
        params.lse = lse.data<float>();
        run_sample(params, num_rows(), schedule);
        INFO(describe_findings());
        REQUIRE(findings().empty());
        Sampled out = empty();
        std::copy_n(params.token_ids, num_rows(), out.token_ids.begin());
        std::copy_n(params.logprobs, num_rows(), out.logprobs.begin());
        std::copy_n(params.lse, num_rows(), out.lse.begin());
        return out;
    }

 private:
    struct Columns {
        std::vector<float> temperature, top_p, min_p;
        std::vector<int32_t> top_k;

        explicit Columns(const Rows& rows) {
            for (const Setting& setting : rows.settings_) {
                temperature.push_back(setting.temperature);
                top_k.push_back(setting.top_k);
                top_p.push_back(setting.top_p);
                min_p.push_back(setting.min_p);
            }
        }
        void give_to(SampleParams& params) const {
            params.temperature = temperature.data();
            params.top_k = top_k.data();
            params.top_p = top_p.data();
            params.min_p = min_p.data();
        }
    };

    // In the case's layout, with NaN in the gaps.
    template <typename T>
    T* laid_out(const GlobalBuffer& buffer, const std::vector<float>& logits) const {
        std::fill_n(buffer.data<T>(), buffer.size() / sizeof(T), from_float<T>(NAN));
        T* const first = buffer.data<T>() + c_.shift;
        for (int64_t row = 0; row < num_rows(); ++row) {
            for (int64_t i = 0; i < c_.vocab_size; ++i) {
                first[row * (c_.vocab_size + c_.padding) + i] = from_float<T>(logits[row * c_.vocab_size + i]);
            }
        }
        return first;
    }
    Sampled empty() const {
        const std::vector<float> nothing(num_rows(), NAN);
        return {std::vector<int32_t>(num_rows(), -1), nothing, nothing};
    }
    SampleParams params_of(DType dtype, const void* logits, const float* ruled, int64_t row_stride) const {
        SampleParams params{};
        params.dtype = dtype;
        params.logits = logits;
        params.ruled_logits = ruled;
        params.row_stride = params.ruled_row_stride = row_stride;
        params.vocab_size = c_.vocab_size;
        params.num_ruled = params.num_allowed = num_rows();
        params.allowed_stride = num_words();
        return params;
    }

    SampleCase c_;
    std::vector<Setting> settings_;
    std::vector<double> uniform_;
    std::vector<float> logits_, ruled_;
    std::vector<int32_t> ruled_rows_, allowed_, allowed_rows_;
};

// Each setting with one of the uniforms; which one differs between cases.
Rows all_settings(const SampleCase& c) {
    const std::vector<Setting> settings(std::begin(kSettings), std::end(kSettings));
    std::vector<double> uniforms;
    for (size_t i = 0; i < settings.size(); ++i) {
        uniforms.push_back(kUniforms[(i + static_cast<size_t>(&c - kCases)) % std::size(kUniforms)]);
    }
    return {c, settings, uniforms};
}

// A rule may leave tokens that the model gives no probability.
void check_near(const std::vector<float>& actual, const std::vector<float>& expected) {
    for (size_t i = 0; i < expected.size(); ++i) {
        CHECK((actual[i] == expected[i] || std::abs(actual[i] - expected[i]) <= 4e-6f));
    }
}

}  // namespace

TEST_CASE_TEMPLATE("sample is that of the CPU, whatever thread runs first", T, float, Bf16, Half) {
    for (const SampleCase& c : kCases) {
        CAPTURE(&c - kCases);
        const Rows rows = all_settings(c);
        const Sampled expected = rows.on_cpu<T>(), first = rows.on_emulator<T>(kSchedules[0]);
        CHECK(first.token_ids == expected.token_ids);
        check_near(first.logprobs, expected.logprobs);
        check_near(first.lse, expected.lse);
        CHECK(same(rows.on_emulator<T>(kSchedules[1]), first));
    }
}

TEST_CASE("a tile of a large vocabulary has more than one step, and where a row begins changes no bit") {
    const int64_t vocab_size = cuda::kMaxSampleTiles * cuda::kWarpElements + 4000;
    const std::vector<Setting> settings = {
        {1.0f, 0, 0.75f, 0.0f}, {kLog2OfE, 200000, 1.0f, 0.0f}, {0.0f, 0, 1.0f, 0.0f}};
    const std::vector<double> uniforms = {0.3, 0.9, 0.5};
    const Rows aligned({vocab_size, 0, 0, false}, settings, uniforms);
    const Rows shifted({vocab_size, 3, 5, false}, settings, uniforms);
    const Sampled expected = aligned.on_cpu<Bf16>(), first = aligned.on_emulator<Bf16>(kSchedules[0]);
    CHECK(first.token_ids == expected.token_ids);
    check_near(first.logprobs, expected.logprobs);
    CHECK(same(shifted.on_emulator<Bf16>(kSchedules[1]), first));
}

TEST_CASE("of equal logits the first ones are kept, over tiles and the steps of a tile") {
    const int64_t vocab_size = cuda::kMaxSampleTiles * cuda::kWarpElements + 4000;
    Rows rows({vocab_size, 0, 0, true}, {{kLog2OfE, 102, 1.0f, 0.0f}}, {25.5 / 27});
    for (int64_t token = 0; token < vocab_size; ++token) rows.logit(0, token) = 0.0f;
    rows.logit(0, 300) = rows.logit(0, 511) = 2.0f;  // weight 1, and 1/4 each of the first hundred others
    for (const Schedule& schedule : kSchedules) CHECK(rows.on_emulator<Bf16>(schedule).token_ids[0] == 300);
}

TEST_CASE_TEMPLATE("a row that is not finite names a token, is told by its log-probability, and changes no other", T,
                   float, Half) {
    const SampleCase c{300, 0, 0, false};
    for (const Setting& setting : {Setting{0.0f, 0, 1.0f, 0.0f}, Setting{1.0f, 20, 0.9f, 0.1f}}) {
        const std::vector<Setting> settings(9, setting);
        const std::vector<double> uniforms(9, 0.5);
        const Sampled before = Rows(c, settings, uniforms).on_emulator<T>(kSchedules[0]);
        Rows rows(c, settings, uniforms);
        rows.logit(0, 299) = NAN;
        rows.logit(3, 7) = INFINITY;
        for (int64_t token = 0; token < c.vocab_size; ++token) {
            rows.logit(6, token) = -INFINITY;
            rows.logit(4, token) = NAN;  // drawn from other logits
        }
        const Sampled after = rows.on_emulator<T>(kSchedules[1]);
        for (int64_t row = 0; row < 9; ++row) {
            CAPTURE(row);
            CHECK(after.token_ids[row] >= 0);
            CHECK(after.token_ids[row] < c.vocab_size);
            const bool is_finite = row != 0 && row != 3 && row != 4 && row != 6;
            CHECK(std::isfinite(after.logprobs[row]) == is_finite);
            CHECK(std::isfinite(after.lse[row]) == is_finite);
            if (is_finite || row == 4) CHECK(after.token_ids[row] == before.token_ids[row]);
            if (is_finite) CHECK(after.logprobs[row] == before.logprobs[row]);
        }
        CHECK(after.token_ids[0] != 299);
    }
}

TEST_CASE("no rows are no launch") {
    const Rows none({300, 0, 0, false}, {}, {});
    CHECK(none.on_emulator<float>(kSchedules[0]).token_ids.empty());
}

TEST_CASE("rows are aligned only where both logits and their strides are") {
    alignas(16) float memory[8] = {};
    SampleParams p{};
    p.logits = p.ruled_logits = memory;
    p.row_stride = p.ruled_row_stride = 8;
    p.num_ruled = 2;
    CHECK(cuda::has_aligned_rows<float>(p, 2));
    const auto needs = [&](auto& field, auto other) {
        const auto before = field;
        field = other;
        CHECK(!cuda::has_aligned_rows<float>(p, 2));
        field = before;
    };
    needs(p.logits, memory + 1);
    needs(p.ruled_logits, memory + 1);
    needs(p.row_stride, 6);
    needs(p.ruled_row_stride, 6);
    p.row_stride = p.ruled_row_stride = 6;  // nobody uses them
    p.num_ruled = 1;
    CHECK(cuda::has_aligned_rows<float>(p, 1));
}
