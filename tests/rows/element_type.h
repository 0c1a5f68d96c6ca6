// What tests of row operations ask of an element type.
#pragma once

#include "attention/params.h"
#include "base/bf16.h"
#include "base/half.h"

namespace batchllm {

template <typename T>
constexpr DType kDType = DType::kFloat16;
template <>
inline constexpr DType kDType<float> = DType::kFloat32;
template <>
inline constexpr DType kDType<Bf16> = DType::kBFloat16;

// A neighbour of a number, relative to it: what two roundings to T of nearly the same number differ by.
template <typename T>
constexpr float kUlp = 0x1p-10f;
template <>
inline constexpr float kUlp<float> = 0x1p-23f;
template <>
inline constexpr float kUlp<Bf16> = 0x1p-7f;

}  // namespace batchllm
