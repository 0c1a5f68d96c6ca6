"""Stop strings: found in the step that completes them, wherever the tokens split.

A token may end amid a character; text is looked at whenever it ends with a whole one.
"""

import gc
import random

import numpy as np
import pytest
from transformers import AutoTokenizer

from batchllm import SamplingParams
from batchllm.request_table import End
from batchllm.sampling.growing_text import GrowingText, context_of, decoder, text_after
from batchllm.sampling.stop_strings import StopStrings
from tests.engine import tiny
from tests.engine.rows import Requests

TEXTS = [
    "The river rose by nine feet, and the mill at the bend was carried away.\n\nQ: Who was there?\nA:",
    "for i in range(10):\n\tprint(i * 2, end='')  # ### done",
    "Zażółć gęślą jaźń naïve café, 東京タワー 👍🏽👩‍👩‍👧 ∑∂x ≤ ½",
    "aaaaaaaaaaaaabaaaaab abababab  \n \n\n   \n",
]


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return AutoTokenizer.from_pretrained(smollm2)


def encode(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def watch(tokenizer, token_ids: list[int], **fields) -> tuple[int, str, str] | None:
    """Feeds the tokens to one request: (tokens read, stop, text) once it stops."""
    requests = watched([SamplingParams(max_tokens=None, **fields)], tokenizer.backend_tokenizer)
    for num_tokens, token in enumerate(token_ids, start=1):
        if end := requests.ends([0], [num_tokens - 1], [token]).get(0):
            return num_tokens, end.reason, end.text
    return None


def watched(params: list[SamplingParams], tokenizer, prompts: list[list[int]] | None = None) -> Requests:
    """Requests with the rule of stop strings; texts begin where they begin, unless there are prompts."""
    return Requests(params, [StopStrings(lambda: tokenizer)], prompts=prompts or [[]] * len(params))


def first_match(tokenizer, token_ids: list[int], stops: list[str]) -> tuple[int, str, str] | None:
    """The same, by decoding every prefix again."""
    for num_tokens in range(1, len(token_ids) + 1):
        text = tokenizer.decode(token_ids[:num_tokens], clean_up_tokenization_spaces=False)
        if text.endswith("\ufffd"):
            continue
        if found := [(text.find(stop), len(stop), stop) for stop in stops if stop in text]:
            start, _, stop = min(found)
            return num_tokens, stop, text[:start]
    return None


@pytest.mark.parametrize("text", TEXTS)
def test_a_stop_string_is_found_where_decoding_every_prefix_finds_it(tokenizer, text):
    token_ids, generator = encode(tokenizer, text), random.Random(0)
    for _ in range(60):
        begins = [generator.randrange(len(text)) for _ in range(generator.choice([1, 1, 3]))]
        stops = [text[begin : begin + generator.choice([1, 2, 3, 5, 12])] for begin in begins]
        expected = first_match(tokenizer, token_ids, stops)
        assert expected is not None
        assert watch(tokenizer, token_ids, stop=stops) == expected
        num_tokens, stop, before = expected
        included = watch(tokenizer, token_ids, stop=stops, include_stop_str_in_output=True)
        assert included == (num_tokens, stop, before + stop)


def test_a_stop_string_split_over_tokens_stops_at_the_last_of_them(tokenizer):
    token_ids = encode(tokenizer, "Answer: forty-two. Question: what next?")
    num_tokens, _, text = watch(tokenizer, token_ids, stop="-two. Quest")
    assert text == "Answer: forty"
    assert "Quest" in tokenizer.decode(token_ids[num_tokens - 1])
    assert len(encode(tokenizer, "-two. Quest")) > 2


def test_a_character_of_many_tokens_is_found_when_its_last_byte_comes(tokenizer):
    token_ids = encode(tokenizer, "ok 👍🏽 done")
    num_tokens, _, text = watch(tokenizer, token_ids, stop="👍")
    assert text == "ok "
    assert num_tokens > len(encode(tokenizer, "ok ")) + 1, "the thumb takes several tokens"
    assert "👍" in tokenizer.decode(token_ids[:num_tokens])
    assert "👍" not in tokenizer.decode(token_ids[: num_tokens - 1])


@pytest.mark.parametrize(
    ("stops", "stop", "text"),
    [
        (["world", "Hello"], "Hello", ""),  # the earliest to be complete
        ([" wor", " world", "o wor"], "o wor", "Hell"),  # complete in the same step: the earliest to begin
        ([" world", " wor"], " wor", "Hello"),  # beginning together: the shortest
        ([" wor", " world"], " wor", "Hello"),
        (["absent", "rld"], "rld", "Hello wo"),
    ],
)
def test_of_several_stop_strings_the_earliest_then_the_shortest_wins(tokenizer, stops, stop, text):
    token_ids = encode(tokenizer, "Hello world again")
    assert [tokenizer.decode(token) for token in token_ids[:2]] == ["Hello", " world"]
    assert watch(tokenizer, token_ids, stop=stops)[1:] == (stop, text)


def test_a_text_without_the_stop_string_goes_on(tokenizer):
    assert watch(tokenizer, encode(tokenizer, TEXTS[0]), stop=["bend was carried off", "Z"]) is None


@pytest.mark.parametrize("min_tokens", [0, 1, 2, 3, 4, 5, 7, 8])
def test_a_stop_string_counts_only_from_min_tokens_on(tokenizer, min_tokens):
    token_ids = encode(tokenizer, " stop a stop b stop c stop")
    assert [tokenizer.decode(token) for token in token_ids[::2]] == [" stop"] * 4
    result = watch(tokenizer, token_ids, stop="stop", min_tokens=min_tokens)
    if min_tokens > len(token_ids):
        assert result is None
    else:
        num_tokens = max(1, min_tokens + (min_tokens + 1) % 2)
        assert result == (num_tokens, "stop", tokenizer.decode(token_ids[:num_tokens])[: -len("stop")])


def test_a_stop_string_may_begin_before_min_tokens(tokenizer):
    token_ids = encode(tokenizer, "one two three")
    assert watch(tokenizer, token_ids, stop="two three", min_tokens=3) == (3, "two three", "one ")


@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens_are_text_only_where_they_are_not_skipped(tokenizer, skip):
    token_ids = [*encode(tokenizer, "Hi"), tokenizer.eos_token_id, *encode(tokenizer, " there")]
    assert (watch(tokenizer, token_ids, stop="Hi there", skip_special_tokens=skip) is not None) == skip


@pytest.mark.parametrize("skip", [True, False])
def test_a_special_token_given_as_a_stop_string_stops_be_it_shown_or_not(tokenizer, skip):
    token_ids = [*encode(tokenizer, "Hi"), tokenizer.eos_token_id, *encode(tokenizer, " there")]
    options = {"stop": ["there", "<|im_end|>"], "skip_special_tokens": skip}
    assert watch(tokenizer, token_ids, **options) == (2, "<|im_end|>", "Hi")
    assert watch(tokenizer, token_ids, include_stop_str_in_output=True, **options)[2] == "Hi<|im_end|>"
    assert watch(tokenizer, token_ids, min_tokens=3, **options)[:2] == (3, "there")


def random_outputs(vocab_size: int, seed: int) -> list[int]:
    """Tokens of a model that knows no language: bytes that are no characters, special tokens, some words."""
    generator = random.Random(seed)
    return [generator.randrange(vocab_size) for _ in range(12)]


@pytest.fixture(scope="module", params=[tiny.save_tokenizer, tiny.save_metaspace_tokenizer])
def any_tokenizer(request, tmp_path_factory):
    request.param(directory := tmp_path_factory.mktemp("tokenizer"))
    return AutoTokenizer.from_pretrained(directory).backend_tokenizer


@pytest.mark.parametrize("skip", [True, False])
def test_growing_text_is_always_what_the_prompt_and_all_tokens_decode_to(any_tokenizer, skip):
    decode = decoder(any_tokenizer, SamplingParams(skip_special_tokens=skip))
    for seed in range(1500):
        token_ids = random_outputs(any_tokenizer.get_vocab_size(), seed)
        for prompt in ([], [tiny.BOS], any_tokenizer.encode("the cat é").ids, token_ids[::-1]):
            growing = GrowingText(decode, prompt)
            for num_tokens, token in enumerate(token_ids, start=1):
                before, changed_at = growing.text, growing.append(token)
                whole = text_after(decode, prompt, token_ids[:num_tokens])
                assert growing.whole() == whole
                if changed_at is None:
                    assert growing.text == before
                    assert decode([*context_of(decode, prompt)[0], *token_ids[:num_tokens]]).endswith("\ufffd")
                else:
                    assert growing.text == whole
                    assert before[:changed_at] == whole[:changed_at]


@pytest.mark.parametrize("prompt", ["the cat", "the cat ", "a", "é", ""])
@pytest.mark.parametrize("text", [" the dog", "the dog", " ", " é ", "é"])
def test_prompt_and_text_are_the_decoded_whole(any_tokenizer, prompt, text):
    decode = decoder(any_tokenizer, SamplingParams())
    prompt_ids = any_tokenizer.encode(prompt).ids
    token_ids = [token for letter in text for token in letter_ids(any_tokenizer, letter)]
    assert decode(prompt_ids) + text_after(decode, prompt_ids, token_ids) == decode([*prompt_ids, *token_ids])


@pytest.mark.parametrize("token", [tiny.BOS, tiny.NUM_SPECIAL + 0x80])
def test_a_long_prompt_without_text_is_decoded_few_times(any_tokenizer, token):
    lengths = []

    def decode(token_ids: list[int]) -> str:
        lengths.append(len(token_ids))
        return any_tokenizer.decode(token_ids)

    context_of(decode, [token] * 100_000)
    assert len(lengths) < 200
    assert sum(lengths) < 4_000_000


def letter_ids(tokenizer, letter: str) -> list[int]:
    """Tokens of one character, as a model writes them amid a text: without what is put before a text."""
    begin = tokenizer.encode("x", add_special_tokens=False).ids
    return tokenizer.encode(f"x{letter}", add_special_tokens=False).ids[len(begin) :]


def test_a_stop_string_with_a_leading_space_is_found_at_the_first_token(any_tokenizer):
    (prompt, the) = any_tokenizer.encode("a").ids, letter_ids(any_tokenizer, " the")
    requests = watched([SamplingParams(stop=" the")], any_tokenizer, [prompt])
    ends = [requests.ends([0], [num], [token]).get(0) for num, token in enumerate(the)]
    assert ends == [*[None] * (len(the) - 1), End(" the", "")]


def test_tokens_that_cannot_be_decoded_are_their_requests_error(any_tokenizer):
    class Broken:
        def get_added_tokens_decoder(self):
            return {}

        def decode(self, token_ids, skip_special_tokens):
            if 9 in token_ids:
                raise BaseException("panicked")
            return any_tokenizer.decode(token_ids)

    requests = watched([SamplingParams(stop="x")] * 2, Broken())
    error = "the tokenizer fails on the tokens: BaseException: panicked"
    assert requests.ends([0, 1], [0, 0], [9, 8]) == {0: End(error=error)}


def test_requests_in_one_batch_do_not_see_each_other(tokenizer):
    stops = ["mill", None, "café", ["range", "print"], None, "b a", "nowhere"]
    texts = [TEXTS[0], TEXTS[0], TEXTS[2], TEXTS[1], TEXTS[2], TEXTS[3], TEXTS[2]]
    rows = [encode(tokenizer, text) for text in texts]
    requests = watched([SamplingParams(stop=stop, max_tokens=None) for stop in stops], tokenizer.backend_tokenizer)
    results, counts, generator = {}, [0] * len(rows), random.Random(0)
    while running := [i for i, row in enumerate(rows) if i not in results and counts[i] < len(row)]:
        batch = generator.sample(running, generator.randint(1, len(running)))
        for request in batch:
            counts[request] += 1
        tokens = [rows[request][counts[request] - 1] for request in batch]
        for request, end in requests.ends(batch, [counts[request] - 1 for request in batch], tokens).items():
            results[request] = (counts[request], end.reason, end.text)
    alone = {i: watch(tokenizer, rows[i], stop=stop) for i, stop in enumerate(stops) if stop}
    assert results == {i: result for i, result in alone.items() if result}
    assert sorted(results) == [0, 2, 3, 5]


def test_a_request_number_can_be_used_again_after_forget(tokenizer):
    requests = watched([SamplingParams(stop="ab")], tokenizer.backend_tokenizer)
    (a,), (b,) = encode(tokenizer, "a"), encode(tokenizer, "b")
    assert not requests.ends([0], [0], [a])
    requests.forget(0)
    requests.add(1, np.array([], np.int32), SamplingParams(stop="ab"))
    assert requests.table[1].slot == 0
    assert not requests.ends([1], [0], [b]), "the first text is forgotten"


def test_a_text_goes_with_its_request(tokenizer):
    def num_texts() -> int:
        return sum(type(living) is GrowingText for living in gc.get_objects())

    before = num_texts()
    requests = watched([SamplingParams(stop="ab")] * 3, tokenizer.backend_tokenizer)
    requests.ends([0, 1, 2], [0] * 3, encode(tokenizer, "a") * 3)
    assert num_texts() == before + 3
    for request_id in range(3):
        requests.forget(request_id)
    assert num_texts() == before


def test_without_stop_strings_no_tokenizer_is_needed():
    def must_not_load():
        raise AssertionError("no tokenizer is needed")

    requests = Requests([SamplingParams(), SamplingParams(stop=[])], [StopStrings(must_not_load)])
    assert requests.ends([1, 0], [0, 0], [5, 6]) == {}
