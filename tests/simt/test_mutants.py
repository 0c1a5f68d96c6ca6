"""The emulated cases fail where a kernel is wrong, and where it is only slow (bank conflicts)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cases import ATTENTION_CASES, Case, Inputs, Request, decodes, heads, prefix
from tests.simt.backend import attention, build_directory, rounded
from tests.simt.mutants import ALWAYS_SCALED, MUTANTS, QUICK, Mutant
from tests.simt.precision import Law
from tests.simt.test_attention import same_bits

ROOT = Path(__file__).resolve().parents[2]
HEADERS = ROOT / "csrc" / "attention" / "cuda"
CHECKED_OPTIONS = ["-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"]

# Small ones of head_dim 64, the only one that mutants are compiled for; each kind of mistake shows in one of them.
NAMES = (
    "prefix_decode tree page_size_2 group_size_3 rows_17 rows_65 rows_129 window_40 window_with_gap soft_cap sinks "
    "sinks_window_soft_cap rows_that_see_nothing needle_border window_behind_the_first_tile_10 scores_far_below_zero "
    "rows_inside_the_prefix"
)
CASES = [
    *(case for case in ATTENTION_CASES if case.name in NAMES.split()),
    Case("a_tile_of_keys_that_the_last_rows_of_a_warp_see", [Request((), 140, 57)], **heads(1, 1)),
    Case("heads_of_narrow_tiles", decodes(prefix(20), [1, 40, 70]), page_size=16, **heads(2, 3)),
    Case("heads_of_two_tiles", decodes(prefix(20), [3, 5]), **heads(200, 1)),
    Case("tile_of_128", [*decodes(prefix(100), [5] * 20), Request((), 150, 150)], **heads(8, 1)),
]


@pytest.fixture(scope="module")
def inputs() -> list[tuple[Inputs, Law]]:
    all_inputs = [rounded(case.make_inputs(), "bfloat16") for case in CASES]
    return [(inputs, Law(inputs, "bfloat16")) for inputs in all_inputs]


def compile_mutant(mutant: Mutant | None, build: str, directory: Path) -> Path:
    """The kernels with one mistake, for bfloat16 and head_dim 64, as a library."""
    sources = {path.name: path.read_text() for path in HEADERS.iterdir() if path.suffix in (".h", ".cuh", ".cpp")}
    sources["run_work.cuh"] = (ROOT / "csrc" / "cuda" / "run_work.cuh").read_text()
    if mutant is not None:
        name = Path(mutant.file).name
        assert sources[name].count(mutant.original) == 1, (
            f"{mutant}: stands {sources[name].count(mutant.original)} times"
        )
        sources[name] = sources[name].replace(mutant.original, mutant.mutated)
    unit = (ROOT / "tests" / "simt" / "attention_kernels.cpp").read_text()
    for head_dim in (96, 128, 256):
        unit = unit.replace(f"        case {head_dim}:\n            return run<T, {head_dim}>(call, schedule);\n", "")
    both = "call.args.params.q.dtype == DType::kBFloat16 ? run<Bf16>(call, schedule) : run<Half>(call, schedule);"
    assert unit.count(both) == 1
    unit = unit.replace(both, "run<Bf16>(call, schedule);")
    copies = directory / "attention" / "cuda"
    (directory / "cuda").mkdir(parents=True)
    copies.mkdir(parents=True)
    for name, text in sources.items():
        (directory / "cuda" if name == "run_work.cuh" else copies).joinpath(name).write_text(text)
    (directory / "kernels.cpp").write_text(unit)

    built = build_directory()
    compile_options = ["-std=c++20", "-O1", "-g1", "-w", "-fPIC", "-fvisibility=hidden"]
    includes = [f"-I{directory}", f"-I{ROOT / 'tests'}", f"-I{ROOT / 'csrc'}"]
    kernels, result = directory / "kernels.o", directory / f"{mutant}.so"
    command = ["c++", *compile_options, *includes, "-c"]
    options = CHECKED_OPTIONS if build == "checked" else []
    subprocess.run([*command, *options, directory / "kernels.cpp", "-o", kernels], check=True)
    host_objects = [directory / "attention_tiles.o", directory / "plan_layout.o"]
    for path in host_objects:
        subprocess.run([*command, copies / path.with_suffix(".cpp").name, "-o", path], check=True)
    objects = [kernels, *host_objects, built / f"CMakeFiles/simt_attention_{build}.dir/attention_library.cpp.o"]
    link_options = ["-shared", "-Wl,-Bsymbolic,--exclude-libs,ALL", "-ldl"]
    subprocess.run(["c++", *objects, built / "libsimt_emulator.a", *link_options, "-o", result], check=True)
    return result


def first_failure(library: Path, inputs: list[tuple[Inputs, Law]]) -> str:
    for case_inputs, law in inputs:
        for order in ("ascending", "descending"):
            try:
                result = attention(
                    case_inputs, build=library, order=order, share="always", num_threads=2, spare=2, heads_per_block=2
                )
                law.check(result)
            except AssertionError as failure:
                return f"{case_inputs.case}: {failure}"
            if result.counts.bank_conflicts:
                return f"{case_inputs.case}: {result.counts.bank_conflicts} bank conflicts"
    return ""


def test_kernels_without_a_mistake_pass(inputs: list[tuple[Inputs, Law]], tmp_path: Path):
    for build in ("fast", "checked"):
        assert first_failure(compile_mutant(None, build, tmp_path / build), inputs) == ""


def test_that_sums_are_left_where_no_maximum_moves_changes_no_bit(inputs: list[tuple[Inputs, Law]], tmp_path: Path):
    library = compile_mutant(ALWAYS_SCALED, "fast", tmp_path)
    for case_inputs, _ in inputs:
        assert same_bits(attention(case_inputs, build="fast"), attention(case_inputs, build=library))


@pytest.mark.parametrize(
    "mutant",
    [mutant if mutant in QUICK else pytest.param(mutant, marks=pytest.mark.full) for mutant in MUTANTS],
    ids=str,
)
def test_a_mistake_is_caught(mutant: Mutant, inputs: list[tuple[Inputs, Law]], tmp_path: Path):
    assert first_failure(compile_mutant(mutant, mutant.build, tmp_path), inputs)
