"""FlashInfer's cascade and paged attention by our kernels, on a CPU as on a GPU, under its names: a program changes
`import flashinfer` into `from batchllm.integrations import flashinfer`.

Shapes, argument names and conventions are FlashInfer's, above all log-sum-exps to base 2. What our kernels do not do is
a NotImplementedError that names the argument: custom masks, rotations inside attention, FP8 with its scales, CUDA
graphs on a GPU, compiled variants, multi-item scoring. Its other functions are not here.
"""

from batchllm.integrations.flashinfer.cascade import (
    MultiLevelCascadeAttentionWrapper,
    merge_state,
    merge_state_in_place,
    merge_states,
)
from batchllm.integrations.flashinfer.decode import (
    BatchDecodeWithPagedKVCacheWrapper,
    CUDAGraphBatchDecodeWithPagedKVCacheWrapper,
)
from batchllm.integrations.flashinfer.prefill import BatchPrefillWithPagedKVCacheWrapper

__all__ = [
    "BatchDecodeWithPagedKVCacheWrapper",
    "BatchPrefillWithPagedKVCacheWrapper",
    "CUDAGraphBatchDecodeWithPagedKVCacheWrapper",
    "MultiLevelCascadeAttentionWrapper",
    "merge_state",
    "merge_state_in_place",
    "merge_states",
]
