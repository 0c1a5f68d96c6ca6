"""A job as an estimate needs it: token ids, and the line of each request."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TokenizedJob:
    """Each prompt of a line is one request for each of the line's n completions, as `batchllm run` has it."""

    line_numbers: NDArray[np.int64]  # [num_lines], from 1
    line_indptr: NDArray[np.int64]  # [num_lines + 1]: requests of a line
    tokens: NDArray[np.int32]  # [sum of prompt lengths]
    indptr: NDArray[np.int64]  # [num_requests + 1]: tokens of a request
    max_output_tokens: NDArray[np.int32]  # [num_requests]

    @property
    def num_lines(self) -> int:
        return len(self.line_numbers)

    @property
    def num_requests(self) -> int:
        return len(self.indptr) - 1

    def prompt(self, request: int) -> NDArray[np.int32]:
        return self.tokens[self.indptr[request] : self.indptr[request + 1]]
