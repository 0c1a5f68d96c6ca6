#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "attention/merge.h"

using namespace batchllm;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct State {
    float out;
    float lse;
};

State merge(const std::vector<State>& states) {
    float memory, out;
    StateMerger merger(&memory, 1);
    for (const State& state : states) merger.add(&state.out, state.lse);
    merger.write(&out);
    return {out, merger.lse()};
}

void check_same(State a, State b) {
    CHECK(a.out == doctest::Approx(b.out).epsilon(1e-6));
    CHECK(a.lse == doctest::Approx(b.lse).epsilon(1e-6));
}

}  // namespace

TEST_CASE("merging is commutative, associative, and has an identity") {
    const State a{2.0f, 0.5f}, b{-3.0f, 1.5f}, c{7.0f, -2.0f}, empty{kNan, -INFINITY};
    check_same(merge({a, b}), merge({b, a}));
    check_same(merge({merge({a, b}), c}), merge({a, merge({b, c})}));
    check_same(merge({a, b, c}), merge({c, a, b}));
    check_same(merge({a, empty}), a);
    check_same(merge({empty, a}), a);
    CHECK(merge({a, b}).lse == doctest::Approx(std::log(std::exp(0.5) + std::exp(1.5))));
}

TEST_CASE("the merge of empty states is empty") {
    for (const State& state : {merge({}), merge({{kNan, -INFINITY}}), merge({{kNan, -INFINITY}, {kNan, -INFINITY}})}) {
        CHECK(state.out == 0.0f);
        CHECK(state.lse == -INFINITY);
    }
}

TEST_CASE("a state far below the other is dropped, not multiplied by zero") {
    check_same(merge({{3.0f, 0.0f}, {INFINITY, -1000.0f}}), {3.0f, 0.0f});
    check_same(merge({{kNan, -1000.0f}, {3.0f, 0.0f}}), {3.0f, 0.0f});
}

TEST_CASE("a NaN lse is passed on") {
    CHECK(std::isnan(merge({{0.0f, kNan}}).lse));
    CHECK(std::isnan(merge({{0.0f, kNan}, {1.0f, 0.0f}}).lse));
    CHECK(std::isnan(merge({{1.0f, 0.0f}, {0.0f, kNan}}).lse));
}

TEST_CASE("a state with out = 0 takes weight and adds nothing, as a sink does") {
    float memory, out;
    const float value = 4.0f, nothing = 0.0f;
    StateMerger merger(&memory, 1);
    merger.add(&value, 1.0f);
    merger.add(&nothing, 1.0f);
    merger.write(&out);
    CHECK(out == doctest::Approx(2.0f));
    CHECK(merger.lse() == doctest::Approx(1.0f + std::log(2.0f)));
}

TEST_CASE("bases and the +inf of other libraries are converted at the border") {
    CHECK(natural_lse(INFINITY, LseBase::kE) == -INFINITY);
    CHECK(natural_lse(INFINITY, LseBase::kTwo) == -INFINITY);
    CHECK(natural_lse(-INFINITY, LseBase::kTwo) == -INFINITY);
    CHECK(natural_lse(3.0f, LseBase::kTwo) == doctest::Approx(std::log(8.0f)));
    CHECK(lse_in_base(std::log(8.0f), LseBase::kTwo) == doctest::Approx(3.0f));
}

TEST_CASE("bfloat16 rounds to nearest even and keeps NaN") {
    CHECK(from_float<Bf16>(1.0f + 0x1p-8f).bits == 0x3f80);
    CHECK(from_float<Bf16>(1.0f + 3 * 0x1p-8f).bits == 0x3f82);
    CHECK(from_float<Bf16>(3.4e38f).bits == 0x7f80);
    CHECK(std::isnan(to_float(from_float<Bf16>(kNan))));
    CHECK(to_float(Bf16{0xc040}) == -3.0f);
}
