"""Prompts come back as they were put in, from memory or from a file."""

import numpy as np
import pytest

from batchllm.jobs.spool import SPOOL_BYTES, PromptSpool

PROMPTS = [[1, 2, 3], [2**31 - 1], list(range(100)), [], [7] * 9]


@pytest.mark.parametrize("spool_bytes", [0, 16, 400, SPOOL_BYTES])
def test_prompts_come_back_as_they_were_put_in(spool_bytes: int) -> None:
    spool = PromptSpool(spool_bytes)
    for prompt in PROMPTS:
        spool.append(prompt)
    assert len(spool) == len(PROMPTS)
    assert [prompt.tolist() for prompt in spool] == PROMPTS
    assert [prompt.tolist() for prompt in spool[1:3]] == PROMPTS[1:3]
    assert spool.tokens.tolist() == [token for prompt in PROMPTS for token in prompt]
    assert spool.indptr.tolist() == [0, *np.cumsum([len(prompt) for prompt in PROMPTS])]
    assert all(prompt.dtype == np.int32 and not prompt.flags.owndata for prompt in spool)
    with pytest.raises(IndexError):
        spool[len(PROMPTS)]
