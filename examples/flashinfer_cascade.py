"""A decode step in FlashInfer's form on a CPU: 32 requests read one document, and each its own part."""

import torch

from batchllm.integrations import flashinfer  # on a GPU with FlashInfer: import flashinfer

num_requests, document_pages, own_pages, page_size = 32, 64, 2, 16
num_qo_heads, num_kv_heads, head_dim = 8, 2, 64
num_pages = document_pages + num_requests * own_pages


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


workspace = torch.empty(0, dtype=torch.uint8)  # only its device counts
wrapper = flashinfer.MultiLevelCascadeAttentionWrapper(2, workspace, "NHD")
wrapper.plan(
    [ints(0, num_requests), ints(*range(num_requests + 1))],
    [ints(0, document_pages), ints(*range(0, num_requests * own_pages + 1, own_pages))],
    [ints(*range(document_pages)), ints(*range(document_pages, num_pages))],
    [ints(page_size), ints(*(1 + request % page_size for request in range(num_requests)))],
    num_qo_heads,
    num_kv_heads,
    head_dim,
    page_size,
    q_data_type=torch.bfloat16,
)
for layer in range(2):
    kv_cache = torch.randn(num_pages, 2, page_size, num_kv_heads, head_dim).bfloat16()
    q = torch.randn(num_requests, num_qo_heads, head_dim).bfloat16()
    print("layer", layer, "->", tuple(wrapper.run(q, kv_cache).shape))
