"""On a GPU: our kernels under FlashInfer's names against float64, and against FlashInfer where that is installed."""

import numpy as np
import pytest
import torch

from batchllm.integrations import flashinfer as ours
from tests.gpu import needs_build
from tests.integrations.flashinfer_batch import Batch, check, reference

pytestmark = [pytest.mark.gpu, needs_build]

LEVELS = [[(6, 300)], [(2, 10), (4, 33)], [(1, 1), (1, 60), (1, 4), (1, 5), (1, 12), (1, 2)]]


def half(batch: Batch) -> Batch:
    """Of values that float16 holds."""
    for name in ("q", "k_pages", "v_pages"):
        setattr(batch, name, getattr(batch, name).astype(np.float16).astype(np.float32))
    return batch


def on_gpu(batch: Batch):
    arrays = [[array.cuda() for array in of_levels] for of_levels in batch.index_arrays]
    cache = batch.cache("NHD", whole=True, dtype=torch.float16).cuda()
    return arrays, torch.from_numpy(batch.q).half().cuda(), cache


@pytest.mark.parametrize("causal", [False, True])
def test_prefill_and_cascade_match_the_reference(causal: bool) -> None:
    workspace = torch.empty(0, dtype=torch.uint8, device="cuda")
    batch = half(Batch([[(3, 90), (1, 1), (70, 70), (1, 800)]], 8, 2, head_dim=128, page_size=16))
    arrays, q, cache = on_gpu(batch)
    prefill = ours.BatchPrefillWithPagedKVCacheWrapper(workspace)
    prefill.plan(*[of_levels[0] for of_levels in arrays], *batch.heads, causal=causal)
    got = prefill.run(q, cache, return_lse=True)
    check(tuple(part.cpu() for part in got), reference(batch, causal=causal), 4e-3)
    batch = half(Batch(LEVELS, 8, 2, head_dim=128, page_size=16))
    arrays, q, cache = on_gpu(batch)
    cascade = ours.MultiLevelCascadeAttentionWrapper(len(LEVELS), workspace)
    cascade.plan(*arrays, *batch.heads, causal=causal)
    out = cascade.run(q, cache).float().cpu().numpy()
    np.testing.assert_allclose(out, reference(batch, causal=causal)[0], atol=4e-3)


def test_flashinfer_itself_gives_the_same() -> None:
    theirs = pytest.importorskip("flashinfer")
    batch = half(Batch(LEVELS, 8, 2, head_dim=128, page_size=16))
    arrays, q, cache = on_gpu(batch)
    cache = cache.nan_to_num(0.0)
    results = []
    for package in (ours, theirs):
        workspace = torch.zeros(128 << 20, dtype=torch.uint8, device="cuda")
        cascade = package.MultiLevelCascadeAttentionWrapper(len(LEVELS), workspace)
        cascade.plan(*arrays, *batch.heads)
        results.append(cascade.run(q, cache))
    torch.testing.assert_close(*results, atol=4e-3, rtol=0)
    states = [torch.randn(9, 3, 8, 128, device="cuda").half(), torch.randn(9, 3, 8, device="cuda") * 4]
    for mine, other in zip(ours.merge_states(*states), theirs.merge_states(*states), strict=True):
        torch.testing.assert_close(mine, other, atol=4e-3, rtol=0)
