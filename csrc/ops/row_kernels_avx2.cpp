#define KERNEL_NAME "avx2"
#define KERNEL_NAMESPACE avx2
#define KERNEL_OBJECT kAvx2RowKernels
#define KERNEL_VECTOR_BYTES 32
#include "ops/row_kernels.inc"
