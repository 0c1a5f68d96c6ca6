"""The arrays in the buffer of a plan that is packed for a GPU (csrc/attention/cuda/plan_layout.h)."""

import numpy as np

import batchllm_ext

# int32 of each struct, by the size that says how many there are; in the order of the buffer.
FIELDS = {
    "num_wide_tiles": 6,
    "num_narrow_tiles": 6,
    "num_item_rows": 4,
    "num_pieces": 4,
    "num_page_ids": 1,
    "num_merged_rows": 3,
}


def packed_arrays(layout: batchllm_ext.PlanLayout, buffer: np.ndarray) -> dict[str, np.ndarray]:
    """Views of buffer, int32 [layout.num_ints]: [size, fields] for each name of FIELDS."""
    ends = np.cumsum([layout.sizes[name] * fields for name, fields in FIELDS.items()])
    assert ends[-1] == layout.num_ints
    arrays = np.split(buffer, ends[:-1])
    return {name: array.reshape(-1, FIELDS[name]) for name, array in zip(FIELDS, arrays, strict=True)}
