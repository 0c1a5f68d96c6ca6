// Kernels for the tests of the emulator. Their unit is compiled as a checked build compiles kernels, the tests are not.
#pragma once

#include <cstdint>

namespace simt_test {

template <typename T>
void multiply_kernel(const T* a, const T* b, float* c);
void load_kernel(uint32_t* registers, bool transposed, int pitch);
void shuffle_kernel(int* results);
void count_kernel(int* count, int* largest);
void index_kernel(int* indices);
void copy_kernel(const float* from, float* to, int when);
void copy_for_others_kernel(const float* from, float* to, bool with_barrier);
extern const int kRaceLine;
void missing_barrier_kernel(int* results, bool with_barrier);
void overwrite_kernel(int* results, bool with_barrier);
enum class Between { kNothing, kBarrierOfWarp, kShuffle };
void neighbour_kernel(int* results, Between between);
void uninitialised_kernel(float* results);
void write_shared_kernel(int index);
void write_array_kernel(int index);
void write_global_kernel(float* to, int index);
void read_global_kernel(const float* from, float* to, int index);
void write_block_kernel(int* to);
void load_misaligned_kernel();
void divergent_barrier_kernel();
void half_a_warp_kernel();
void lonely_lane_kernel();
void order_kernel(int* count, int* ranks);
void deep_kernel(int* to);
enum class Wait { kNever, kBefore, kAfter };  // the read
void next_kernel(const int* from, int* to, Wait wait);

}  // namespace simt_test
