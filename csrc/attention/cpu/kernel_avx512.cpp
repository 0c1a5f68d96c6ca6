#include <immintrin.h>

#define KERNEL_NAMESPACE avx512
#define KERNEL_OBJECT kAvx512Kernel
#define KERNEL_VECTOR_BYTES 64
#define KERNEL_BROADCASTS 8
#define KERNEL_BLOCK_VECTORS 3
#define KERNEL_ACCUMULATORS 16
#define KERNEL_MAX_NARROW_ROWS 16
#include "attention/cpu/attention_kernel.inc"
