// The part of CUDA's language and headers that kernels use, for the host compiler.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>

#include "simt/emulator/block.h"
#include "simt/emulator/memory.h"
#include "simt/emulator/shadow.h"
#include "simt/emulator/warp.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

#define threadIdx (::simt::thread_index())
#define blockIdx (::simt::block_index())
#define blockDim (::simt::block_size())
#define gridDim (::simt::grid_size())

// An array in shared memory: __shared__ T name.
#define SIMT_SHARED(T, name) auto& name = ::simt::shared_array<T>([] {})

namespace simt {

using Place = std::source_location;

template <typename T, typename Tag>
T& shared_array(Tag) {  // a tag is a type of its own for each place in the source
    static const char key = 0;
    return *static_cast<T*>(SharedMemory::instance().array(&key, sizeof(T), alignof(T)));
}

template <typename T>
T shuffle_bits(Shuffle kind, uint32_t mask, T value, int operand, int width, const Location& location) {
    static_assert(sizeof(T) == sizeof(uint32_t));
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits = shuffle(kind, mask, bits, operand, width, location);
    std::memcpy(&value, &bits, sizeof bits);
    return value;
}

// Its own load and store are not those of a kernel.
template <typename T, typename Update>
__attribute__((noinline, no_sanitize_thread)) T atomic_update(T* address, const Location& location, Update update) {
    check_access({address, sizeof(T), Access::kAtomic}, location);
    const T old = *address;
    *address = update(old);
    return old;
}

}  // namespace simt

struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};

inline void __syncthreads(simt::Place place = simt::Place::current()) {
    simt::Block::running()->sync_threads(place);
}
inline void __syncwarp(uint32_t mask = ~0u, simt::Place place = simt::Place::current()) {
    simt::Block::running()->sync_warp(mask, place);
}

template <typename T>
T __shfl_sync(uint32_t mask, T value, int lane, int width = 32, simt::Place place = simt::Place::current()) {
    return simt::shuffle_bits(simt::Shuffle::kIndex, mask, value, lane, width, place);
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, int delta, int width = 32, simt::Place place = simt::Place::current()) {
    return simt::shuffle_bits(simt::Shuffle::kUp, mask, value, delta, width, place);
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, int delta, int width = 32, simt::Place place = simt::Place::current()) {
    return simt::shuffle_bits(simt::Shuffle::kDown, mask, value, delta, width, place);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int lanes, int width = 32, simt::Place place = simt::Place::current()) {
    return simt::shuffle_bits(simt::Shuffle::kXor, mask, value, lanes, width, place);
}

inline uint32_t __ballot_sync(uint32_t mask, bool predicate, simt::Place place = simt::Place::current()) {
    return simt::ballot(mask, predicate, place);
}
inline bool __any_sync(uint32_t mask, bool predicate, simt::Place place = simt::Place::current()) {
    return simt::ballot(mask, predicate, place) != 0;
}
inline bool __all_sync(uint32_t mask, bool predicate, simt::Place place = simt::Place::current()) {
    return simt::ballot(mask, !predicate, place) == 0;
}

template <typename T>
T atomicAdd(T* address, std::type_identity_t<T> value, simt::Place place = simt::Place::current()) {
    return simt::atomic_update(address, place, [&](T old) { return old + value; });
}
template <typename T>
T atomicMax(T* address, std::type_identity_t<T> value, simt::Place place = simt::Place::current()) {
    return simt::atomic_update(address, place, [&](T old) { return old > value ? old : value; });
}

inline float rsqrtf(float x) {
    return 1.0f / sqrtf(x);
}
inline int min(int a, int b) {
    return a < b ? a : b;
}
inline int max(int a, int b) {
    return a > b ? a : b;
}
