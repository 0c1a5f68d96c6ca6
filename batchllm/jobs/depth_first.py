"""The depth-first order of a job's requests: from one trie, or from runs that are sorted, written to files and merged.

Each run has its own trie, and its file is read once from beginning to end. So only the prompts of one run are in memory
while it is sorted, and one prompt of each run while runs are merged."""

from __future__ import annotations

import heapq
import itertools
import struct
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

import batchllm_ext as ext
from batchllm.estimate.tokenized_job import TokenizedJob

RUN_TOKENS = 1 << 30  # per run, 4 GiB; a job with fewer is one trie
HEADER = struct.Struct("qq")  # of a prompt in a run: the request, and the bytes of its tokens
BIG_ENDIAN = np.dtype(">i4")  # whose bytes compare as the tokens do

IntArray = NDArray[np.int64]


class DepthFirst(NamedTuple):
    """Requests in the order of a job's trie."""

    request: IntArray  # [num_requests]: rank -> request
    shared_tokens: IntArray  # [num_requests], by rank: with the request before it; 0 for the first

    @classmethod
    def of_trie(cls, trie: ext.PrefixTrie) -> DepthFirst:
        shared = np.zeros(trie.num_requests, np.int64)
        for begin, end, depth in zip(
            trie.request_begin.tolist(), trie.request_end.tolist(), trie.token_end.tolist(), strict=True
        ):
            shared[begin + 1 : end] = depth  # children come later and are deeper
        return cls(trie.order.astype(np.int64), shared)


def depth_first(job: TokenizedJob, run_tokens: int = RUN_TOKENS) -> DepthFirst:
    """The order of the job's requests, by all but the last token of each. Raises OSError if there is no room for files
    in $TMPDIR."""
    cuts = run_cuts(job.indptr, run_tokens)
    if len(cuts) <= 2:
        return DepthFirst.of_trie(ext.PrefixTrie(job.tokens, job.indptr, drop_last=1))
    order = np.empty(job.num_requests, np.int64)
    shared = np.zeros(job.num_requests, np.int64)
    with ExitStack() as stack:
        runs = []
        for begin, end in itertools.pairwise(cuts):
            file = stack.enter_context(tempfile.TemporaryFile(prefix="batchllm-run-"))
            write_run(job, begin, end, file)
            runs.append(read_run(file))
        before = b""
        for rank, (prompt, request) in enumerate(heapq.merge(*runs)):
            order[rank] = request
            shared[rank] = num_shared(before, prompt)
            before = prompt
    return DepthFirst(order, shared)


def run_cuts(indptr: IntArray, run_tokens: int) -> list[int]:
    """The requests at which runs begin, then the number of requests. A run has at most that many tokens, or one
    request."""
    cuts = [0]
    while cuts[-1] < len(indptr) - 1:
        end = int(np.searchsorted(indptr, indptr[cuts[-1]] + run_tokens, side="right")) - 1
        cuts.append(max(end, cuts[-1] + 1))
    return cuts


def write_run(job: TokenizedJob, begin: int, end: int, file: IO[bytes]) -> None:
    """The prompts of the requests [begin, end), sorted."""
    indptr = job.indptr[begin : end + 1]
    trie = ext.PrefixTrie(job.tokens[indptr[0] : indptr[-1]], indptr - indptr[0], drop_last=1)
    for request in (trie.order + begin).tolist():
        prompt = job.prompt(request)[:-1].astype(BIG_ENDIAN).tobytes()
        file.write(HEADER.pack(request, len(prompt)))
        file.write(prompt)
    file.seek(0)


def read_run(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """(tokens, request), one after the other."""
    while header := file.read(HEADER.size):
        request, num_bytes = HEADER.unpack(header)
        yield file.read(num_bytes), request


def num_shared(a: bytes, b: bytes) -> int:
    """The number of leading tokens that two prompts in BIG_ENDIAN share."""
    length = min(len(a), len(b))
    differs = np.frombuffer(a[:length], np.int32) != np.frombuffer(b[:length], np.int32)
    return int(differs.argmax()) if differs.any() else length // BIG_ENDIAN.itemsize
