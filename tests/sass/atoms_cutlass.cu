// The same instructions as CUTLASS writes them.
#include <cutlass/functional.h>

#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/copy_sm80.hpp>
#include <cute/arch/mma_sm80.hpp>

using namespace cute;

extern "C" __global__ void atoms(float* c, const uint32_t* a, const uint32_t* b, const uint128_t* global) {
    extern __shared__ __align__(128) unsigned char shared[];
    float sums[4] = {c[0], c[1], c[2], c[3]};
    const uint32_t left[4] = {a[0], a[1], a[2], a[3]};
    SM80_16x8x16_F32BF16BF16F32_TN::fma(sums[0], sums[1], sums[2], sums[3], left[0], left[1], left[2], left[3], b[0],
                                        b[1], sums[0], sums[1], sums[2], sums[3]);
    SM80_16x8x16_F32F16F16F32_TN::fma(sums[0], sums[1], sums[2], sums[3], left[0], left[1], left[2], left[3], b[2],
                                      b[3], sums[0], sums[1], sums[2], sums[3]);
    for (int i = 0; i < 4; ++i) c[i] = sums[i];
    uint32_t straight[4], transposed[4];
    SM75_U32x4_LDSM_N::copy(*reinterpret_cast<const uint128_t*>(shared), straight[0], straight[1], straight[2],
                            straight[3]);
    SM75_U16x8_LDSM_T::copy(*reinterpret_cast<const uint128_t*>(shared + 512), transposed[0], transposed[1],
                            transposed[2], transposed[3]);
    SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<uint128_t>::copy(*global, *reinterpret_cast<uint128_t*>(shared), straight[0] & 1);
    cp_async_fence();
    cp_async_wait<1>();
    c[8] = cutlass::reciprocal_approximate_ftz<float>{}(c[8]);
    for (int i = 0; i < 4; ++i) c[4 + i] = __uint_as_float(straight[i] + transposed[i]);
}
