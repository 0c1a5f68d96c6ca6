#include <immintrin.h>

#define KERNEL_NAMESPACE avx512
#define KERNEL_OBJECT kAvx512RowKernels
#define KERNEL_VECTOR_BYTES 64
#include "rows/row_kernels.inc"
