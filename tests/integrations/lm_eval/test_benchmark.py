"""The benchmark checks scores and writes its figures."""

import json

from benchmarks.bench_lm_eval import SAMPLERS, main
from tests.engine import tiny


def test_both_models_answer_and_the_figures_are_written(tmp_path, capsys):
    directory = tiny.save(tiny.Family("Llama", {"max_position_embeddings": 2048}).model(), tmp_path / "model")
    tiny.save_tokenizer(directory)
    arguments = ["--model", str(directory), "--questions", "6", "--hf-questions", "4"]
    main([*arguments, "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures) == list(SAMPLERS)
    for of_sampler in figures.values():
        assert of_sampler["ratio"] > 0
        assert of_sampler["computed_prompt_tokens"] < 0.5 * of_sampler["prompt_tokens"]
    assert figures["first_n"]["computed_prompt_tokens"] < figures["random"]["computed_prompt_tokens"]
    assert "extrapolated from 4 questions" in capsys.readouterr().out
