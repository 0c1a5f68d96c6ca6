#include <immintrin.h>

#define KERNEL_NAMESPACE avx2
#define KERNEL_OBJECT kAvx2RowKernels
#define KERNEL_VECTOR_BYTES 32
#include "rows/row_kernels.inc"
