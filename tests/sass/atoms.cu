// Every function of intrinsics.cuh that is one instruction, in the order of atoms_cutlass.cu.
#include "cuda/intrinsics.cuh"

using namespace batchllm;
using namespace batchllm::cuda;

extern "C" __global__ void atoms(float* c, const uint32_t* a, const uint32_t* b, const void* global) {
    unsigned char* shared = dynamic_shared_memory();
    float sums[4] = {c[0], c[1], c[2], c[3]};
    const uint32_t left[4] = {a[0], a[1], a[2], a[3]};
    multiply_accumulate_16x8<Bf16>(sums, left, b[0], b[1]);
    multiply_accumulate_16x8<Half>(sums, left, b[2], b[3]);
    for (int i = 0; i < 4; ++i) c[i] = sums[i];
    uint32_t straight[4], transposed[4];
    load_matrices(straight, shared);
    load_matrices_transposed(transposed, shared + 512);
    copy_async(shared, global, straight[0] & 1);
    commit_copies();
    wait_for_copies<1>();
    c[8] = reciprocal_approx(c[8]);
    for (int i = 0; i < 4; ++i) c[4 + i] = __uint_as_float(straight[i] + transposed[i]);
}
