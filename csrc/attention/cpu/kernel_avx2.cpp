#define KERNEL_NAMESPACE avx2
#define KERNEL_OBJECT kAvx2Kernel
#define KERNEL_VECTOR_BYTES 32
#define KERNEL_BROADCASTS 4
#define KERNEL_BLOCK_VECTORS 3
#define KERNEL_ACCUMULATORS 8
#define KERNEL_MAX_NARROW_ROWS 8
#include "attention/cpu/attention_kernel.inc"
