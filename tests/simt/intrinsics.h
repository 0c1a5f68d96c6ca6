// The emulator's back end of csrc/cuda/intrinsics.cuh: the same functions for the host compiler.
#pragma once

#include "base/bf16.h"
#include "base/half.h"
#include "simt/emulator/async_copy.h"
#include "simt/emulator/cuda.h"
#include "simt/emulator/matrix.h"

namespace batchllm::cuda {

inline unsigned char* dynamic_shared_memory() {
    return reinterpret_cast<unsigned char*>(simt::SharedMemory::instance().dynamic());
}

template <typename T>
void multiply_accumulate(float (&c)[2][4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                         simt::Place place = simt::Place::current()) {
    constexpr auto kType = std::is_same_v<T, Bf16> ? simt::Float16::kBf16 : simt::Float16::kHalf;
    simt::multiply_16x16x16(kType, c, a, b, place);
}

inline void load_matrices(uint32_t (&registers)[4], const void* row, simt::Place place = simt::Place::current()) {
    simt::load_matrices(registers, row, false, place);
}
inline void load_matrices_transposed(uint32_t (&registers)[4], const void* row,
                                     simt::Place place = simt::Place::current()) {
    simt::load_matrices(registers, row, true, place);
}

inline void copy_async(void* to, const void* from, bool valid, simt::Place place = simt::Place::current()) {
    simt::issue_async_copy(to, from, valid, place);
}
inline void commit_copies() {
    simt::commit_async_copies();
}
template <int kMostPending>
void wait_for_copies() {
    simt::wait_for_async_copies(kMostPending);
}

inline float exp2_approx(float x) {
    return exp2f(x);
}

inline float reciprocal_approx(float x) {
    return 1.0f / x;
}

// Launches run one after another; whether they wait is checked.
inline void wait_for_earlier_launches() {
    simt::Block::running()->wait_for_earlier_launches();
}
inline void let_next_launch_begin() {}

template <typename T>
uint32_t pack(float low, float high) {
    return from_float<T>(low).bits | uint32_t{from_float<T>(high).bits} << 16;
}

}  // namespace batchllm::cuda
