"""How a GPU runs steps, on one simulated by the CPU: uploads, buckets, graphs that outgrow their room, compared with
the CPU."""

import gc
import random
from unittest.mock import Mock

import numpy as np
import pytest
import torch

import batchllm_ext as ext
from batchllm import LLM, SamplingParams
from batchllm.device.step import StepLayout
from batchllm.device.transfer import UploadRing
from batchllm.engine.engine import Engine
from batchllm.engine.engine_requests import EngineRequest
from batchllm.engine.graphs import CAPTURED_AFTER, ROOM, Graph, Graphs, bucket_of, logit_row_bucket, row_bucket
from batchllm.engine.runner import GpuRunner
from benchmarks.host_time import NoKernels, NoModel
from tests.engine import tiny
from tests.engine.fake_gpu import FakeEvent, FakeGpu, FakeGpuOps, on_fake_gpu
from tests.engine.teacher import assert_logits_agree, new_engine, our_logits
from tests.engine.test_families import job

pytestmark = pytest.mark.usefixtures("one_thread")

TWO_KINDS = tiny.Family("Qwen2", tiny.SLIDING | {"max_window_layers": 1, "head_dim": 64})


@pytest.fixture(scope="module")
def two_kinds_dir(tmp_path_factory):
    return tiny.save(TWO_KINDS.model(), tmp_path_factory.mktemp("two_kinds") / "model")


def test_buckets_are_powers_of_two_and_steps_between():
    assert sorted({row_bucket(size) for size in range(1, 400)}) == [8, 16, 32, 64, 96, 128, 192, 256, 384, 512]
    for size in range(1, 5000):
        assert size <= row_bucket(size) <= max(2 * size, 8)
        assert size <= logit_row_bucket(size) <= max(4 * size, 8)
        assert row_bucket(row_bucket(size)) == row_bucket(size)
        assert row_bucket(size) <= row_bucket(size + 1)


@pytest.mark.parametrize("options", [{}, {"levels": 0, "page_size": 4}, {"max_batch_tokens": 9}], ids=str)
def test_a_gpu_gives_the_logits_of_the_cpu(wide_dir, captures_at_once, options):
    prompts, continuations = job()
    continuations = [tokens * (1 + i % 3) for i, tokens in enumerate(continuations)]  # steps of fewer and fewer rows
    llm, gpu = on_fake_gpu(wide_dir, **options)
    ours = our_logits(llm, prompts, continuations)
    assert_logits_agree(ours, our_logits(LLM(wide_dir, dtype="float32"), prompts, continuations), 1e-4)
    assert 0 < gpu.num_captures < gpu.num_replays


@pytest.mark.parametrize("options", [{}, {"max_batch_tokens": 9}], ids=str)
def test_a_gpu_has_a_plan_for_each_kind_of_layer(two_kinds_dir, captures_at_once, options):
    prompts, continuations = job()
    llm, gpu = on_fake_gpu(two_kinds_dir, **options)
    assert len(llm.engine.model.attention_kinds) == 2
    ours = our_logits(llm, prompts, continuations)
    assert_logits_agree(ours, our_logits(LLM(two_kinds_dir, dtype="float32"), prompts, continuations), 1e-4)
    assert gpu.num_captures <= gpu.num_replays


def test_a_bucket_has_room_for_its_rows_and_no_more_logit_rows_than_rows():
    for num_rows in range(1, 400):
        for num_logit_rows in range(1, num_rows + 1):
            bucket = bucket_of(num_rows, num_logit_rows)
            if bucket is not None:
                assert num_logit_rows <= bucket[1] <= bucket[0] >= num_rows


def test_a_graph_has_room_for_every_page_and_is_captured_once_its_bucket_has_come_often(wide_dir):
    generator = random.Random(3)
    prompts = [[generator.randrange(4, tiny.VOCAB_SIZE) for _ in range(10)] for _ in range(3)]
    llm, gpu = on_fake_gpu(wide_dir, page_size=1)  # every token is a page id more
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    tokens = [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]
    alone = LLM(wide_dir, dtype="float32").generate(prompts, params, use_tqdm=False)
    assert tokens == [output.outputs[0].token_ids for output in alone]
    assert gpu.num_captures == llm.stats["captures"] == 1
    # The first step has prompt rows that do not sample.
    assert gpu.num_replays == llm.stats["steps"] - 1 - CAPTURED_AFTER
    llm.generate(prompts, params, use_tqdm=False)
    assert llm.stats["captures"] == 0
    assert gpu.num_replays == 2 * llm.stats["steps"] - 2 - CAPTURED_AFTER


def decodes(num_requests: int, head: int) -> tuple[ext.AttentionPlan]:
    """The plan of a step in which requests with a common head decode."""
    prompts = [[*range(10, 10 + head), 5, 6 + i] for i in range(num_requests)]
    tokens, indptr = np.concatenate(prompts).astype(np.int32), np.cumsum([0, *map(len, prompts)])
    segments = ext.choose_segments(ext.PrefixTrie(tokens, indptr, drop_last=1))
    bounds = np.full(num_requests, 4, np.int32)
    options = {"num_pages": 500, "max_batch_tokens": len(tokens)}
    planner = ext.BatchPlanner(tokens, indptr, segments, max_output_tokens=bounds, **options)
    planner.commit(np.zeros(len(planner.next_batch().logit_rows), np.int32))
    shape = {"num_qo_heads": 32, "num_kv_heads": 8, "head_dim": 128, "page_size": 16}
    return (ext.plan_attention(planner.next_batch(), **shape, num_threads=132, device="cuda"),)


def test_a_graph_that_a_plan_outgrows_is_captured_anew_with_room_for_both(captures_at_once):
    captured: list[StepLayout] = []

    def capture(layout: StepLayout) -> Graph:
        captured.append(layout)
        buffer = torch.zeros(layout.num_ints, dtype=torch.int32)
        return Graph(layout, buffer, layout.step(buffer, Mock()), Mock(), torch.empty(0))

    graphs, alone, together = Graphs(500), decodes(8, 0), decodes(8, 3000)
    assert together[0].sizes["num_item_rows"] > ROOM * alone[0].sizes["num_item_rows"]
    for plans in (alone, together, alone, together):
        graph = graphs.find(plans, (), capture)
        assert graph.layout is captured[-1]
        assert graph.layout.has_room_for(plans)
    assert len(captured) == 2
    assert len(graphs) == 1


def test_full_steps_with_prompt_rows_are_replayed_too(wide_dir, captures_at_once):
    generator = random.Random(4)
    prompts = [[generator.randrange(4, tiny.VOCAB_SIZE) for _ in range(generator.randint(5, 40))] for _ in range(12)]
    llm, gpu = on_fake_gpu(wide_dir, max_batch_tokens=16)
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    tokens = [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]
    alone = LLM(wide_dir, dtype="float32").generate(prompts, params, use_tqdm=False)
    assert tokens == [output.outputs[0].token_ids for output in alone]
    assert gpu.num_replays > sum(map(len, prompts)) // 16, "each prompt token but those of the last steps"


# Graphs of jobs of uniform and of mixed lengths. Without room for the pool's pages, and captured at the first step of
# each bucket, they were 9, 18, 14, 22, 13 and 23.
@pytest.mark.parametrize(
    ("num_requests", "output_tokens", "most"),
    [(256, (64, 64), 2), (256, (16, 256), 8), (1024, (64, 64), 6), (1024, (16, 256), 14), (2048, (64, 64), 6),
     (2048, (16, 256), 15)],
)  # fmt: skip
def test_a_job_captures_few_graphs(num_requests, output_tokens, most):
    rng, requests = np.random.default_rng(0), []
    for _ in range(num_requests // 32):
        head = rng.integers(10, 32_000, rng.integers(200, 2000), np.int32)
        for _ in range(32):
            prompt = np.concatenate([head, rng.integers(10, 32_000, rng.integers(20, 150), np.int32)])
            bound = int(rng.integers(*output_tokens, endpoint=True))
            requests.append(EngineRequest(prompt, SamplingParams(temperature=0, max_tokens=bound), [0], bound))
    model, gpu = NoModel(), FakeGpu(num_multiprocessors=132)
    engine = Engine(
        model,
        GpuRunner(model, gpu, NoKernels()),
        [],
        levels=None,
        page_size=16,
        kv_cache_tokens=1 << 18,
        max_batch_tokens=2048,
    )
    engine.add(requests)
    while engine.step() is not None:
        pass
    assert 0 < gpu.num_captures <= most
    assert gpu.num_replays > 0.4 * engine.figures.steps


class GpuThatKeepsNothing(FakeGpu):
    """As a real graph, it has addresses in its replay, not what lies there. Here: nothing."""

    def capture(self, run):
        return (lambda: None), run()


def test_graphs_go_with_their_pool(wide_dir, captures_at_once):
    llm = LLM(wide_dir, dtype="float32", page_size=4)
    llm.engine.runner = GpuRunner(llm.engine.model, GpuThatKeepsNothing(), FakeGpuOps())
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    for _ in range(2):
        llm.generate([[5, 6, 7]], params, use_tqdm=False)
        assert len(llm.engine.runner.graphs) == 1, "the pool is used again"
    another = new_engine(llm, [])
    another.add([EngineRequest(np.array([5, 6, 7], np.int32), params, [0], 3)])
    while another.step() is not None:
        assert len(llm.engine.runner.graphs) <= 2
    del another
    gc.collect()
    assert len(llm.engine.runner.graphs) == 1


def test_sampling_on_a_gpu_draws_the_tokens_of_the_cpu(wide_dir):
    prompts = tiny.shared_prompts(12)
    kinds = [{"temperature": 0}, {}, {"top_k": 9}, {"top_p": 0.7}, {"min_tokens": 3}]
    params = [SamplingParams(seed=i, max_tokens=4, **kinds[i % len(kinds)]) for i in range(12)]
    llm, _ = on_fake_gpu(wide_dir)
    ours, theirs = (
        [output.outputs[0].token_ids for output in one.generate(prompts, params, use_tqdm=False)]
        for one in (llm, LLM(wide_dir, dtype="float32"))
    )
    assert ours == theirs


@pytest.mark.gpu
def test_a_gpu_gives_the_same_tokens_from_graphs_captured_now_or_before(smollm2):
    """A real one. The second job replays the graphs that the first captured, and captures none."""
    llm = LLM(smollm2, device="cuda")
    prompts = [[1000 + i % 3] * 40 + [2000 + i] for i in range(24)]
    params = [SamplingParams(temperature=0, max_tokens=5 + i % 20, ignore_eos=True) for i in range(24)]
    first, second = (
        [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)] for _ in range(2)
    )
    assert first == second


# What is uploaded.


def planned(num_requests: int, num_kinds: int = 1) -> tuple[ext.TokenBatch, tuple[ext.AttentionPlan, ...]]:
    """The first step of a job of prompts of one token, all of which sample; kind i has i + 1 KV heads."""
    tokens, indptr = np.arange(5, 5 + num_requests, dtype=np.int32), np.arange(num_requests + 1)
    segments = ext.choose_segments(ext.PrefixTrie(tokens, indptr, drop_last=1))
    bounds = np.full(num_requests, 4, np.int32)
    batch = ext.BatchPlanner(tokens, indptr, segments, max_output_tokens=bounds, num_pages=50).next_batch()
    shape = {"num_qo_heads": 6, "head_dim": 64, "page_size": 16}
    return batch, tuple(ext.plan_attention(batch, num_kv_heads=1 + kind, **shape) for kind in range(num_kinds))


def layouts(plans: tuple[ext.AttentionPlan, ...]) -> tuple[ext.PlanLayout, ...]:
    return tuple(ext.PlanLayout(plan, 50) for plan in plans)


def packed(layout: ext.PlanLayout, plan: ext.AttentionPlan) -> list[int]:
    buffer = np.full(layout.num_ints, 0x7F7F7F7F, np.int32)
    layout.pack(plan, buffer)
    return buffer.tolist()


@pytest.mark.parametrize("num_kinds", [1, 3])
def test_a_step_is_written_with_rows_to_spare(num_kinds):
    (batch, plans), (_, larger) = planned(5, num_kinds), planned(8, num_kinds)
    layout = StepLayout(layouts(larger))
    buffer = torch.full((layout.num_ints,), 0x7F7F7F7F, dtype=torch.int32)
    layout.write(buffer.numpy(), batch, plans)
    step = layout.step(buffer, lambda plan_layout, part: (plan_layout, part))
    assert step.token_ids.tolist() == [5, 6, 7, 8, 9, 0, 0, 0]
    assert step.positions.tolist() == [0] * 8
    assert step.slots.dtype == torch.int64
    assert step.slots.tolist() == [*batch.slots.tolist(), *[-1] * 3]
    assert [of for of, _ in step.plans] == list(layout.plans)
    assert [part.tolist() for _, part in step.plans] == [
        packed(of, plan) for of, plan in zip(layout.plans, plans, strict=True)
    ]
    assert step.logit_rows is None
    assert step.logit_plans == ()


@pytest.mark.parametrize("num_kinds", [1, 3])
def test_a_step_whose_rows_do_not_all_sample_has_second_plans(num_kinds):
    batch, plans = planned(5, num_kinds)
    _, logit_plans = planned(5, num_kinds)
    layout = StepLayout(layouts(plans), layouts(logit_plans))
    buffer = torch.zeros(layout.num_ints, dtype=torch.int32)
    layout.write(buffer.numpy(), batch, plans, logit_plans)
    step = layout.step(buffer, lambda _, part: part)
    assert step.logit_rows.tolist() == batch.logit_rows.tolist()
    expected = [packed(of, plan) for of, plan in zip(layouts(plans), plans, strict=True)]
    assert [part.tolist() for part in step.plans] == [part.tolist() for part in step.logit_plans] == expected
    parts = (step.slots, step.token_ids, *step.plans, *step.logit_plans)
    assert all(part.data_ptr() % 16 == 0 for part in parts)


def test_a_layout_has_room_where_every_plan_has():
    _, (small, small_too) = planned(5, 2)
    _, (large, _) = planned(8, 2)
    layout = StepLayout(layouts((large, small_too)))
    assert layout.has_room_for((small, small_too))
    assert not layout.has_room_for((small, large))
    assert not layout.has_room_for((planned(9)[1][0], small_too))


def test_an_upload_waits_for_the_last_copy_out_of_its_own_buffer_only():
    events, buffers = [], []

    def new_event() -> FakeEvent:
        events.append(FakeEvent())
        return events[-1]

    def new_buffer(size: int) -> torch.Tensor:
        buffers.append(torch.zeros(size, dtype=torch.int32))
        return buffers[-1]

    ring = UploadRing(new_buffer, new_event)
    assert len(events) == 2
    written: list[int] = []

    def upload(size: int, value: int) -> None:
        def write(host: np.ndarray) -> None:
            turn = len(written) % 2
            assert events[turn].waited == 1 + len(written) // 2, "before it is written, its copy is waited for"
            assert events[turn].recorded == len(written) // 2
            assert len(host) == size
            host[:] = value
            written.append(host.ctypes.data)

        device = torch.zeros(size, dtype=torch.int32)
        ring.upload(write, device)
        assert device.tolist() == [value] * size

    for index, size in enumerate((4, 4, 8, 6, 3, 8)):
        upload(size, index)
    assert written[0] == written[2] == written[4]
    assert written[1] == written[3] == written[5]
    assert written[0] != written[1]
    upload(9, 9)  # outgrows its buffer
    assert len(buffers) == 5
