#include <immintrin.h>

#define KERNEL_NAME "avx512"
#define KERNEL_NAMESPACE avx512
#define KERNEL_OBJECT kAvx512RowKernels
#define KERNEL_VECTOR_BYTES 64
#include "ops/row_kernels.inc"
