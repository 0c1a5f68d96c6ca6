"""The benchmark of what precision costs."""

import sys
from pathlib import Path

import pytest

from benchmarks import perplexity
from tests.engine import tiny


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a model with texts of 40, 80 and 120 tokens, of which 64 are scored."""
    tiny.save_tokenizer(model := tiny.save(tiny.FAMILIES["llama"].model(), tmp_path / "model"))
    texts = [tmp_path / f"{length}.txt" for length in (40, 80, 120)]
    for seed, (text, length) in enumerate(zip(texts, (40, 80, 120), strict=True)):
        text.write_text("".join(chr(97 + (seed + i * i) % 26) for i in range(length)))
    monkeypatch.setattr(perplexity, "NUM_TOKENS", 64)
    monkeypatch.setattr(sys, "argv", ["perplexity", "--model", str(model), "--texts", *map(str, texts)])
    return sys.argv


def test_every_precision_is_printed_beside_bfloat16(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    perplexity.main()
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.endswith("; 2 texts of 64 tokens")
    assert [line[:32].rstrip() for line in lines] == list(perplexity.PRECISIONS)
    assert lines[0].split()[2:4] == ["+0.00", "%"]


def test_a_single_text_has_no_error_and_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    del arguments[-1]
    with pytest.raises(SystemExit):
        perplexity.main()
    assert "--texts: expected at least two texts of 64 tokens or more, got 1" in capsys.readouterr().err
