"""Sampling against exact probabilities, and its independence of everything but seed, position and logits."""

import itertools
import weakref

import numpy as np
import pytest
import torch
from transformers import generation

from batchllm import SamplingParams
from batchllm.device.ops import CpuOps, Draw, DrawParams
from batchllm.sampling.draw import stream_seed, uniform_draws
from batchllm.sampling.rules import LogitsRule
from batchllm.sampling.stop_tokens import MinTokens, StopTokens
from tests.engine.rows import Requests

pytestmark = pytest.mark.usefixtures("one_thread")

VOCAB_SIZE = 40
EOS = 7
FILTERS = list(itertools.product([0.5, 1.0, 3.0], [0, 1, 3, 39, 100], [0.05, 0.6, 0.95, 1.0]))  # temperature, k, p


def random_logits(rows: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed))


def exact_probs(logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float = 0.0) -> np.ndarray:
    """float64 [V]: softmax, then those at least min_p times as likely as the likeliest, then the k likeliest, then the
    fewest of those whose mass reaches top_p of theirs."""
    scaled = logits.double().numpy() / temperature
    probs = np.exp(scaled - scaled.max())
    probs[probs < min_p] = 0
    likeliest = np.argsort(-probs, kind="stable")[: top_k or None]
    share = np.cumsum(probs[likeliest]) / probs[likeliest].sum()
    num_kept = np.searchsorted(share, top_p) + 1 if top_p < 1 else len(likeliest)
    kept = np.zeros_like(probs)
    kept[likeliest[:num_kept]] = probs[likeliest[:num_kept]]
    return kept / kept.sum()


def draw_row(logits: torch.Tensor, temperature: float, top_k: int, top_p: float, uniform: np.ndarray) -> np.ndarray:
    """One token of the same row for each uniform."""
    rows = len(uniform)
    params = DrawParams(
        temperature=torch.full((rows,), temperature),
        top_k=torch.full((rows,), top_k, dtype=torch.int32),
        top_p=torch.full((rows,), top_p),
        min_p=torch.zeros(rows),
        uniform=torch.from_numpy(uniform),
    )
    out = Draw.of(rows, logits.device)
    CpuOps().sample(logits.expand(rows, -1).clone(), params, out=out)
    return out.token_ids.numpy()


def requests_of(params: list[SamplingParams]) -> Requests:
    stop_tokens = StopTokens((EOS,))
    return Requests(params, [MinTokens(stop_tokens), stop_tokens])


def sample(params: list[SamplingParams], logits: torch.Tensor, positions=None) -> tuple[np.ndarray, np.ndarray]:
    """One row for each of the parameters, after so many tokens of its output."""
    requests = requests_of(params)
    positions = [0] * len(params) if positions is None else positions
    before = logits.clone()
    sampled = requests.sample(logits, requests.rows(range(len(params)), positions), CpuOps())
    assert torch.equal(logits, before), "logits are not changed"
    return sampled


def assert_uniform(counts: np.ndarray, expected: np.ndarray) -> None:
    """Chi-square within five standard deviations of its mean; nothing where nothing is expected."""
    assert not counts[expected == 0].any()
    counts, expected = counts[expected > 0], expected[expected > 0]
    degrees = len(counts) - 1
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square <= degrees + 5 * (2 * degrees) ** 0.5


def test_greedy_takes_the_largest_logit_and_needs_no_seed():
    logits = random_logits(200)
    tokens, _ = sample([SamplingParams(temperature=0, top_k=3, top_p=0.5, seed=i) for i in range(200)], logits)
    assert tokens.tolist() == logits.argmax(dim=-1).tolist()


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), FILTERS)
def test_every_token_owns_its_probability_of_the_unit_interval(temperature, top_k, top_p):
    """A draw inverts a cumulative sum, so an even grid of uniforms meets each token as often as its probability
    says, to one grid point: sharper than any number of random draws."""
    num_points = 2000
    grid = (np.arange(num_points) + 0.5) / num_points
    for logits in random_logits(3):
        expected = exact_probs(logits, temperature, top_k, top_p)
        counts = np.bincount(draw_row(logits, temperature, top_k, top_p, grid), minlength=VOCAB_SIZE)
        assert np.abs(counts - num_points * expected).max() <= 1.01
        assert not counts[expected == 0].any()


@pytest.mark.parametrize(
    "fields",
    [
        *({}, {"temperature": 2.0}, {"top_k": 5}, {"top_p": 0.8}, {"temperature": 0.7, "top_k": 12, "top_p": 0.9}),
        *({"min_p": 0.1}, {"min_p": 1}, {"min_p": 0.2, "temperature": 3.0, "top_k": 9, "top_p": 0.8}),
    ],
    ids=str,
)
@pytest.mark.parametrize("vary", ["seed", "position"])
def test_draws_follow_the_exact_distribution(fields, vary):
    rows = 20_000
    logits = random_logits(1)
    varied = np.arange(rows)
    params = [SamplingParams(seed=int(i) if vary == "seed" else 3, **fields) for i in varied]
    tokens, _ = sample(params, logits.expand(rows, -1), varied if vary == "position" else None)
    p = params[0]
    expected = rows * exact_probs(logits[0], p.temperature, p.top_k, p.top_p, p.min_p)
    assert_uniform(np.bincount(tokens, minlength=VOCAB_SIZE), expected)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("min_p", [0.0, 0.01, 0.3, 1.0])
def test_min_p_leaves_what_transformers_leaves(temperature, min_p):
    for logits in random_logits(5):
        scores = generation.TemperatureLogitsWarper(temperature)(torch.zeros(1, 1), logits[None])
        left = generation.MinPLogitsWarper(min_p)(torch.zeros(1, 1), scores)[0].isfinite()
        assert left.equal(torch.from_numpy(exact_probs(logits, temperature, 0, 1.0, min_p) > 0))
        params = [SamplingParams(temperature=temperature, min_p=min_p, seed=i) for i in range(300)]
        tokens, _ = sample(params, logits.expand(300, -1))
        assert left[tokens].all()


@pytest.mark.parametrize(("top_k", "top_p"), [(2, 1.0), (0, 0.5), (0, 0.26), (3, 0.6)])
def test_among_equal_logits_exactly_as_many_are_kept_as_asked(top_k, top_p):
    logits = torch.full((VOCAB_SIZE,), -torch.inf)
    logits[[3, 11, 20, 39]] = 1.5
    tokens = draw_row(logits, 1.0, top_k, top_p, np.linspace(0, 1, 999, endpoint=False))
    assert set(tokens.tolist()) == {3, 11}


@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (0, 1e-9), (1, 1e-9), (5, 1e-9)])
def test_the_likeliest_token_always_stays(top_k, top_p):
    logits = random_logits(1)[0]
    tokens = draw_row(logits, 5.0, top_k, top_p, np.linspace(0, 1, 99, endpoint=False))
    assert set(tokens.tolist()) == {int(logits.argmax())}


@pytest.mark.parametrize("uniform", [0.0, np.nextafter(1.0, 0.0)])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (4, 1.0), (0, 0.9)])
def test_the_ends_of_the_interval_meet_no_token_of_probability_zero(uniform, top_k, top_p):
    logits = random_logits(50)
    logits[:, :5] = logits[:, -5:] = -torch.inf
    for row in logits:
        (token,) = draw_row(row, 1.0, top_k, top_p, np.array([uniform]))
        assert exact_probs(row, 1.0, top_k, top_p)[token] > 0


def test_a_row_depends_on_nothing_else_in_the_batch():
    settings = [(0.0, 0, 1.0), *FILTERS]
    params = [SamplingParams(temperature=t, top_k=k, top_p=p, seed=i) for i, (t, k, p) in enumerate(settings)]
    logits, positions = random_logits(len(params)), np.arange(len(params)) % 9
    together = sample(params, logits, positions)
    alone = [sample([p], logits[i : i + 1], positions[i : i + 1]) for i, p in enumerate(params)]
    assert together[0].tolist() == [int(tokens[0]) for tokens, _ in alone]
    np.testing.assert_array_equal(together[1], np.concatenate([logprobs for _, logprobs in alone]))
    order = np.random.default_rng(0).permutation(len(params))
    shuffled = sample([params[i] for i in order], logits[order], positions[order])
    np.testing.assert_array_equal(shuffled, np.take(together, order, axis=1))


def test_bfloat16_logits_are_sampled_as_their_float32_values():
    logits = random_logits(100).bfloat16()
    params = [SamplingParams(temperature=i % 3, seed=i, min_tokens=i % 2, max_tokens=9) for i in range(100)]
    logits[:, EOS] = 9.0  # the largest, wherever it is not banned
    tokens, logprobs = sample(params, logits.float())
    same_tokens, same_logprobs = sample(params, logits)
    assert same_tokens.tolist() == tokens.tolist()
    np.testing.assert_allclose(same_logprobs, logprobs, atol=2e-6)
    assert (tokens[::6] == EOS).all()
    assert (tokens[1::2] != EOS).all()


def test_sampling_a_part_of_the_requests_is_sampling_those():
    params = [SamplingParams(seed=i, top_k=5 * (i % 2)) for i in range(30)]
    logits, part = random_logits(30), np.array([29, 4, 11], np.int32)
    whole, _ = sample(params, logits)
    requests = requests_of(params)
    tokens, _ = requests.sample(logits[part], requests.rows(part.tolist(), [0] * 3), CpuOps())
    assert tokens.tolist() == whole[part].tolist()


@pytest.mark.parametrize("vary", ["seed", "position", "hashed seed"])
def test_uniform_draws_are_uniform_and_uncorrelated(vary):
    num = 1 << 16
    varied = np.arange(num, dtype=np.uint64)
    seeds = {"seed": varied, "position": np.full(num, 9, np.uint64)}.get(
        vary, np.array([stream_seed(i, 0, []) for i in range(num)], np.uint64)
    )
    draws = uniform_draws(seeds, varied if vary == "position" else np.zeros(num, np.int32))
    assert draws.dtype == np.float64
    assert (draws >= 0).all()
    assert (draws < 1).all()
    bins = np.floor(draws * 32).astype(int)
    assert_uniform(np.bincount(bins, minlength=32), np.full(32, num / 32))
    for lag in (1, 2, 16):  # neighbours, as pairs of bins: 1,024 cells
        pairs = np.bincount(32 * bins[:-lag] + bins[lag:], minlength=1024)
        assert_uniform(pairs, np.full(1024, pairs.sum() / 1024))


def test_uniform_draws_are_the_numbers_of_splitmix64():
    """The generator's published numbers for seed 1234567: a seed means the same in every version."""
    splitmix64 = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    draws = uniform_draws(np.full(4, 1234567, np.uint64), np.arange(4, dtype=np.int32))
    assert draws.tolist() == [(number >> 11) / 2**53 for number in splitmix64]


def test_streams_of_seeds_samples_and_prompts_are_all_different():
    pairs = list(itertools.product([0, 1, 11, -1, "0/1", "1/0", "11"], range(50)))
    prompts = [[], [1], [1, 2], [2, 1], [256]]
    distinct = [(seed, sample) for seed, sample in pairs if seed != 11]  # 11 and "11" are one seed
    seeds = [stream_seed(seed, sample, prompt) for prompt in prompts for seed, sample in distinct]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert stream_seed(5, 3, [1]) == stream_seed(5, 3, np.array([1])) == stream_seed("5", 3, [1])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_token_ends_a_request_before_min_tokens(temperature):
    common = {"temperature": temperature, "seed": 0, "min_tokens": 3}
    params = [
        SamplingParams(**common),
        SamplingParams(**common, stop_token_ids=[9, EOS]),
        SamplingParams(**common, stop_token_ids=[9], ignore_eos=True),
        SamplingParams(temperature=temperature, seed=0, stop_token_ids=[9]),
    ]
    logits = torch.full((4, VOCAB_SIZE), -20.0)
    logits[:, EOS], logits[:, 9], logits[:, 30] = 90.0, 60.0, 30.0
    for position in range(3):
        assert sample(params, logits, [position] * 4)[0].tolist() == [9, 30, EOS, EOS]
    assert sample(params, logits, [3] * 4)[0].tolist() == [EOS] * 4


def test_stop_sets_end_only_their_own_requests():
    requests = requests_of(
        [
            SamplingParams(),
            SamplingParams(ignore_eos=True),
            SamplingParams(stop_token_ids=[9, 9]),
            SamplingParams(stop_token_ids=[9], ignore_eos=True),
        ]
    )

    def ends(token: int) -> list[bool]:
        ended = requests.ends([3, 2, 1, 0], [0] * 4, [token] * 4)
        return [request in ended for request in (3, 2, 1, 0)]

    assert ends(EOS) == [False, True, False, True]
    assert ends(9) == [True, True, False, False]
    assert ends(8) == [False] * 4


def test_a_stop_set_goes_with_the_last_request_that_has_it():
    stop_tokens = StopTokens((EOS,))
    nine = SamplingParams(stop_token_ids=[9])
    requests = Requests([nine, SamplingParams(stop_token_ids=[9, 9]), SamplingParams()], [stop_tokens])
    kept = weakref.ref(stop_tokens.token_ids(requests.table[0]))
    requests.forget(0)
    assert kept() is not None
    assert requests.ends([1, 2], [0, 0], [9, 9]).keys() == {1}
    requests.forget(1)
    assert kept() is None
    requests.add(3, np.array([1], np.int32), nine)
    assert requests.ends([2, 3], [0, 0], [9, 9]).keys() == {3}
    assert requests.ends([2, 3], [0, 0], [EOS, EOS]).keys() == {2, 3}


class Only(LogitsRule):
    """One request draws one token."""

    def __init__(self, request_id, token):
        self.request_id, self.token = request_id, token

    def concerns(self, rows):
        return rows.request_ids == self.request_id

    def before_draw(self, logits, rows):
        others = torch.arange(logits.shape[1]) != self.token
        logits[:, others] = -torch.inf


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rules_that_concern_different_rows_each_change_their_own(temperature):
    params = [SamplingParams(temperature=temperature, seed=i) for i in range(4)]
    requests, logits = Requests(params, [Only(2, 11), Only(0, 12)]), random_logits(4)
    rows = requests.rows([3, 2, 1, 0], [0] * 4)
    (third, second, first, zeroth), _ = requests.sample(logits, rows, CpuOps())
    assert (second, zeroth) == (11, 12)
    free, _ = Requests(params, []).sample(logits, rows, CpuOps())
    assert (third, first) == (free[0], free[2])


def test_logprobs_are_those_of_the_model_before_rules():
    params = [
        SamplingParams(temperature=t, min_tokens=1, stop_token_ids=[0, 1], seed=1, max_tokens=9) for t in (0.0, 1.0)
    ]
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).expand(2, 4)
    tokens, logprobs = sample(params, torch.nn.functional.pad(logits, (0, VOCAB_SIZE - 4), value=-torch.inf))
    assert set(tokens.tolist()) <= {2, 3}
    np.testing.assert_allclose(logprobs, torch.log_softmax(logits[0], -1)[torch.from_numpy(tokens).long()], atol=1e-6)


def test_logprobs_are_those_of_the_model_before_temperature_and_filters():
    settings = [(0.0, 0, 1.0), *FILTERS]
    params = [SamplingParams(temperature=t, top_k=k, top_p=p, seed=i) for i, (t, k, p) in enumerate(settings)]
    logits = random_logits(len(params))
    tokens, logprobs = sample(params, logits)
    expected = torch.log_softmax(logits.double(), dim=-1)[torch.arange(len(params)), torch.from_numpy(tokens).long()]
    assert logprobs.dtype == np.float32
    np.testing.assert_allclose(logprobs, expected.numpy(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("temperature", [0.0, 0.01, 1.0, 1e30])
def test_a_logit_of_minus_infinity_is_never_drawn(temperature):
    logits = torch.full((50, VOCAB_SIZE), -torch.inf)
    only = torch.arange(50) % VOCAB_SIZE
    logits[torch.arange(50), only] = -3.0
    tokens, logprobs = sample([SamplingParams(temperature=temperature, seed=i) for i in range(50)], logits)
    assert tokens.tolist() == only.tolist()
    np.testing.assert_array_equal(logprobs, 0)


@pytest.mark.parametrize("temperature", [1e-5, 1e-4])
def test_a_temperature_near_zero_is_greedy_in_effect(temperature):
    logits = random_logits(100)
    tokens, _ = sample([SamplingParams(temperature=temperature, seed=i) for i in range(100)], logits)
    best = logits.topk(2).values
    clear = (best[:, 0] - best[:, 1] > 1e-2).numpy()
    assert clear.mean() > 0.9
    assert (tokens == logits.argmax(dim=-1).numpy())[clear].all()
