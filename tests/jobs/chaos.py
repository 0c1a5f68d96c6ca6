"""A job that is killed again and again, and resumed until it is done: python -m tests.jobs.chaos KILLS [SEED]

Its answers are those of a run that nobody disturbed, each of them once. The model is tiny and greedy in float32, and a
token is a word, so that equal texts are equal tokens. A run is a fork of this process, which has imported everything
and computed nothing."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

import batchllm.llm  # noqa: F401, before the forks
from batchllm.cli import main
from tests.engine import tiny
from tests.jobs.batch_lines import chat_line, completion_line, read_records, write_lines

NUM_LINES = 500
WORDS = [*(f"w{i}" for i in range(tiny.VOCAB_SIZE - tiny.NUM_SPECIAL - 2)), "user:", "assistant:"]
TIMEOUT_S = 120.0
KILLS = ("SIGKILL", "SIGTERM", "full disk", "torn record", "hole", "SIGKILL while it starts")


def save_model(directory: Path) -> None:
    tiny.save(tiny.FAMILIES["llama"].model(), directory)
    vocab = {word: i for i, word in enumerate((*tiny.SPECIAL_TOKENS, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocab, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(tiny.SPECIAL_TOKENS))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")
    fast.chat_template = tiny.CHAT_TEMPLATE
    fast.save_pretrained(directory)


def mixed_lines(generator: random.Random) -> list[Any]:
    """Chats, texts, token ids, lines of several prompts and completions under common prefixes; some are bad."""
    documents = [" ".join(generator.choices(WORDS[:-2], k=40)) for _ in range(5)]

    def text() -> str:
        return f"{generator.choice(documents)} {' '.join(generator.choices(WORDS[:-2], k=generator.randrange(9)))}"

    lines: list[Any] = []
    for i in range(NUM_LINES):
        body = {"temperature": 0, "max_tokens": generator.randrange(1, 12), "skip_special_tokens": False}
        kind = i % 10
        if kind < 4:
            lines.append(chat_line(f"chat {i}", text(), **body))
        elif kind < 7:
            lines.append(completion_line(f"text {i}", text(), **body))
        elif kind == 7:
            lines.append(completion_line(f"tokens {i}", generator.choices(range(4, tiny.VOCAB_SIZE), k=9), **body))
        elif kind == 8:
            lines.append(completion_line(f"several {i}", [text(), text()], n=2, **body))
        else:
            bad = (b"{", completion_line(f"chat {i - 9}"), completion_line(f"long {i}", [5] * 600), chat_line("", "x"))
            lines.append(bad[i // 10 % 4])
    return lines


class Job:
    def __init__(self, directory: Path, model: Path, name: str) -> None:
        self.output = directory / f"{name}.jsonl"
        self.errors = directory / f"{name}.errors.jsonl"
        self.log = directory / f"{name}.log"
        self._arguments = ["run", str(directory / "in.jsonl"), "-o", str(self.output), "--model", str(model)]
        self._arguments += ["--resume", "--dtype", "float32", "--kv-cache-tokens", "2048", "--max-batch-tokens", "128"]
        self._arguments += ["--num-threads", "1"]  # as a fork must

    def start(self, disk_bytes: int | None = None) -> int:
        """The process. disk_bytes: no file becomes larger."""
        process = os.fork()
        if process:
            return process
        try:
            for stream in (sys.stdout, sys.stderr):
                os.dup2(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream.fileno())
            if disk_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (disk_bytes, disk_bytes))
            sys.argv = ["batchllm", *self._arguments]
            main()
        except SystemExit as done:
            os._exit(int(done.code or 0))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(99)

    def size(self) -> int:
        return self.output.stat().st_size if self.output.exists() else 0

    def answers(self) -> dict[str, Any]:
        """The parts of an answer that do not depend on when and where it was computed, by custom_id."""
        bodies = {record["custom_id"]: record["response"]["body"] for record in read_records(self.output)}
        assert len(bodies) == len(read_records(self.output)), "a custom_id is answered twice"
        names = ("prompt_tokens", "completion_tokens")
        return {key: (body["choices"], [body["usage"][name] for name in names]) for key, body in bodies.items()}

    def failures(self) -> Counter[tuple[int, str]]:
        return Counter((record["error"]["line"], record["error"]["code"]) for record in read_records(self.errors))


def status_of(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill(job: Job, kind: str, num_bytes: int, generator: random.Random) -> int:
    """Runs the job and disturbs it once the output has grown by about num_bytes; its exit status."""
    target = job.size() + generator.randrange(1, 2 * num_bytes)
    if kind == "full disk":
        return status_of(job.start(disk_bytes=max(target, 20_000)))
    process = job.start()
    if kind == "SIGKILL while it starts":
        time.sleep(generator.uniform(0, 0.6))
    else:
        end_s = time.monotonic() + TIMEOUT_S
        while job.size() < target and os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            assert time.monotonic() < end_s, job.log.read_text()
            time.sleep(0.0005)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL)
    status = status_of(process)
    if kind in ("torn record", "hole") and (size := job.size()):
        begin = generator.randrange(max(size - 2000, 0), size)
        with job.output.open("r+b") as file:
            if kind == "torn record":
                file.truncate(begin)
            else:
                file.seek(begin)
                file.write(bytes(min(generator.randrange(1, 1000), size - begin)))
    return status


def chaos(directory: Path, num_kills: int, seed: int) -> Counter[str]:
    """The exit statuses by what was done to the runs; asserts that it made no difference."""
    generator = random.Random(seed)
    model = directory / "model"
    if (process := os.fork()) == 0:  # threads of torch do not survive a fork
        save_model(model)
        os._exit(0)
    assert status_of(process) == 0
    write_lines(directory / "in.jsonl", mixed_lines(generator))
    undisturbed, job = Job(directory, model, "undisturbed"), Job(directory, model, "killed")
    assert status_of(undisturbed.start()) == 3, undisturbed.log.read_text()
    num_bytes = max(undisturbed.size() // (2 * num_kills), 1)
    seen: Counter[str] = Counter()
    for number in range(num_kills):
        kind = KILLS[number % len(KILLS)]
        seen[f"{kind}: {kill(job, kind, num_bytes, generator)}"] += 1
    assert status_of(job.start()) == 3, job.log.read_text()
    assert job.answers() == undisturbed.answers()
    assert job.failures() == undisturbed.failures()
    assert len(job.answers()) + job.failures().total() == NUM_LINES
    return seen


if __name__ == "__main__":
    kills, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6)
    print(f"{kills} kills of a job of {NUM_LINES} lines, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for what, count in sorted(chaos(Path(folder), kills, seed).items()):
            print(f"{count:4} x {what}")
    print("every line once, and every answer as undisturbed")
