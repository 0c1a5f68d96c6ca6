#define KERNEL_NAMESPACE base
#define KERNEL_OBJECT kBaseRowKernels
#define KERNEL_VECTOR_BYTES 16
#include "rows/row_kernels.inc"
