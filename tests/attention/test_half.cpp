#include <doctest/doctest.h>

#include <cmath>
#include <random>

#include "base/half.h"

using namespace batchllm;

namespace {

// A finite half as IEEE 754 defines it.
double value_of(uint16_t bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    return bits & 0x8000 ? -magnitude : magnitude;
}

}  // namespace

TEST_CASE("every half has its value, and is what its value rounds to") {
    for (int bits = 0; bits < 0x10000; ++bits) {
        const Half half{static_cast<uint16_t>(bits)};
        const float value = to_float(half);
        const bool is_special = (bits & 0x7c00) == 0x7c00;
        if (is_special && (bits & 0x03ff) != 0) {
            CHECK(std::isnan(value));
            CHECK(std::isnan(to_float(from_float<Half>(value))));
            continue;
        }
        CHECK(value == (is_special ? (bits & 0x8000 ? -INFINITY : INFINITY) : value_of(half.bits)));
        CHECK(from_float<Half>(value).bits == half.bits);
    }
}

TEST_CASE("between two halves the nearer one is taken, in the middle the even one") {
    std::mt19937 random(5);
    std::uniform_real_distribution<float> between(0.0f, 1.0f);
    for (uint16_t bits = 0; bits < 0x7bff; ++bits) {
        const float low = to_float({bits}), high = to_float({static_cast<uint16_t>(bits + 1)});
        const float middle = low + (high - low) / 2;
        CHECK(from_float<Half>(middle).bits == bits + (bits & 1));
        CHECK(from_float<Half>(-middle).bits == (0x8000 | (bits + (bits & 1))));
        CHECK(from_float<Half>(std::nextafter(middle, 0.0f)).bits == bits);
        CHECK(from_float<Half>(std::nextafter(middle, INFINITY)).bits == bits + 1);
        const float any = low + (high - low) * between(random);
        CHECK(std::abs(to_float(from_float<Half>(any)) - any) <= (high - low) / 2);
    }
    CHECK(from_float<Half>(65519.0f).bits == 0x7bff);
    CHECK(from_float<Half>(65520.0f).bits == 0x7c00);  // the middle to what would be 2^16
    CHECK(from_float<Half>(-INFINITY).bits == 0xfc00);
}
