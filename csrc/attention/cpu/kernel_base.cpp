#define KERNEL_NAMESPACE base
#define KERNEL_OBJECT kBaseKernel
#define KERNEL_VECTOR_BYTES 16
#define KERNEL_BROADCASTS 4
#define KERNEL_BLOCK_VECTORS 2
#define KERNEL_ACCUMULATORS 8
#define KERNEL_MAX_NARROW_ROWS 8
#include "attention/cpu/attention_kernel.inc"
