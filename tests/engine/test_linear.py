"""Matrix products with packed weights."""

import itertools
import json

import pytest
import torch
import torch.nn.functional as F

import batchllm.device.linear
from batchllm import LLM, SamplingParams
from batchllm.device import measurements, product_times
from batchllm.device.cpu_share import CpuTime
from batchllm.device.linear import Linear, ways_of
from batchllm.device.packed import can_pack


def random_linear(dtype: torch.dtype, bias: bool) -> Linear:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 40, generator=generator).to(dtype)
    return Linear(weight, torch.randn(48, generator=generator).to(dtype) if bias else None)


@pytest.fixture
def packing_is(monkeypatch):
    """packing_is(faster=...) says what the measurement shall find."""

    def patch(*, faster: bool) -> None:
        gain = 2.0 if faster else 0.5
        monkeypatch.setattr(batchllm.device.linear, "gains_of_packing", lambda *shape: {1: gain, 16: gain, 256: gain})

    return patch


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [0, 1, 7, 64])
def test_packing_changes_products_within_rounding_only(packing_is, dtype, bias, num_rows):
    packing_is(faster=True)
    linear = random_linear(dtype, bias)
    x = torch.randn(num_rows, 40, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = F.linear(x.double(), linear.weight.double(), None if linear.bias is None else linear.bias.double())
    linear.pack()
    y = linear(x)
    assert (y.dtype, y.shape) == (dtype, (num_rows, 48))
    rounding = torch.finfo(dtype).eps * (1 + expected.abs().max()) if num_rows else 0
    assert num_rows == 0 or (y.double() - expected).abs().max() <= 4 * rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_onednn_multiplies_is_packed_where_that_is_faster(packing_is, dtype):
    linear = random_linear(dtype, bias=False)
    packing_is(faster=False)
    linear.pack()
    assert not linear.is_packed
    packing_is(faster=True)
    linear.pack()
    linear.pack()  # once is enough
    assert linear.is_packed == can_pack(dtype)


def test_nothing_but_float32_and_bfloat16_is_packed():
    assert not can_pack(torch.float64)
    assert not can_pack(torch.float16)


@pytest.mark.parametrize("slower", ["plain", "packed"])
@pytest.mark.parametrize("clock", ["seconds", "cpu_seconds"])
def test_the_way_that_took_longer_loses(monkeypatch, slower, clock):
    """By the clock; by one thread's CPU time if other programs disturb that."""
    is_quiet, runs = clock == "seconds", itertools.count()
    num_threads = torch.get_num_threads()

    def timed(run):
        run()
        if clock == "cpu_seconds":
            assert torch.get_num_threads() == 1
            is_plain = next(runs) // product_times.QUIET_TURNS % 2 == 0
        else:
            is_plain = next(runs) % 2 == 0
        return 2.0 if is_plain == (slower == "plain") else 1.0

    monkeypatch.setattr(product_times, "LIMIT_S", 0.0)
    waited = itertools.repeat(0.0) if is_quiet else itertools.count(0.0, 60.0)
    monkeypatch.setattr(CpuTime, "now", lambda: CpuTime(0.0, next(waited)))
    monkeypatch.setattr(measurements if is_quiet else product_times, clock, timed)
    gains, was_quiet = product_times.measure_gains(48, 40, torch.float32)
    assert set(gains.values()) == {2.0 if slower == "plain" else 0.5}
    assert was_quiet == is_quiet
    assert torch.get_num_threads() == num_threads


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """What is measured from now on, with an empty cache."""
    shapes: list[tuple] = []

    def measure(*shape):
        shapes.append(shape)
        return dict.fromkeys(product_times.MEASURED_ROWS, 2.0), True

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(product_times, "measure_gains", measure)
    product_times.gains_of_packing.cache_clear()
    yield shapes
    product_times.gains_of_packing.cache_clear()


def test_a_shape_is_measured_once_whichever_process_does_it(measured):
    for _ in range(2):
        for _ in range(2):
            random_linear(torch.float32, bias=False).pack()
        assert measured == [(48, 40, torch.float32)]
        product_times.gains_of_packing.cache_clear()  # as in a process of its own
    product_times.gains_of_packing(48, 40, torch.float32, 7)
    product_times.gains_of_packing(48, 40, torch.bfloat16, 7)
    assert len(measured) == 3
    file = measurements.cache_file(product_times.FILE)
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("content", ["", "\xff", "[]", '{"KEY": 1}', '{"KEY": {"1": 2}}', '{"KEY": {"1": "x"}}'])
def test_a_file_that_is_not_ours_is_measured_anew(measured, content):
    gains = product_times.gains_of_packing(48, 40, torch.float32, 2)
    file = measurements.cache_file(product_times.FILE)
    (key,) = json.loads(file.read_text())
    file.write_text(content.replace("KEY", key), encoding="latin-1")
    product_times.gains_of_packing.cache_clear()
    assert product_times.gains_of_packing(48, 40, torch.float32, 2) == gains
    assert len(measured) == 2


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_kept_number_that_nobody_measured_is_measured_anew(measured, value):
    product_times.gains_of_packing(48, 40, torch.float32, 2)
    file = measurements.cache_file(product_times.FILE)
    ((key, kept),) = json.loads(file.read_text()).items()
    file.write_text(json.dumps({key: kept | {"16": value}}))
    product_times.gains_of_packing.cache_clear()
    product_times.gains_of_packing(48, 40, torch.float32, 2)
    assert len(measured) == 2


def test_the_newest_measurements_are_kept(measured, monkeypatch):
    monkeypatch.setattr(measurements, "MAX_KEPT", 2)
    for out_features in (1, 2, 3):
        product_times.gains_of_packing(out_features, 40, torch.float32, 2)
    product_times.gains_of_packing.cache_clear()
    product_times.gains_of_packing(3, 40, torch.float32, 2)
    assert len(measured) == 3
    product_times.gains_of_packing(1, 40, torch.float32, 2)
    assert len(measured) == 4


def test_what_others_disturbed_is_not_kept(measured, monkeypatch):
    measure = product_times.measure_gains
    monkeypatch.setattr(product_times, "measure_gains", lambda *shape: (measure(*shape)[0], False))
    for _ in range(2):
        assert product_times.gains_of_packing(48, 40, torch.float32, 2)[1] == 2.0
        product_times.gains_of_packing.cache_clear()
    assert len(measured) == 2


def test_where_no_file_can_be_written_it_is_measured(measured, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert product_times.gains_of_packing(48, 40, torch.float32, 2)[1] == 2.0


@pytest.mark.parametrize(
    ("gains", "way", "plain_rows"),
    [
        ({1: 2, 16: 2, 256: 2}, "packed", []),
        ({1: 0.5, 16: 0.5, 256: 0.5}, "as it is", []),
        ({1: 0.5, 16: 2, 256: 2}, "packed; as it is for 0 to 15 rows", [0, 1, 15]),
        ({1: 2, 16: 2, 256: 0.9}, "packed; as it is for 256 or more rows", [256, 1000]),
        ({1: 0.5, 16: 0.5, 256: 2}, "packed; as it is for 0 to 255 rows", [0, 1, 15, 16, 255]),
        ({1: 0.5, 16: 2, 256: 0.5}, "packed; as it is for 0 to 15, 256 or more rows", [0, 1, 15, 256, 1000]),
    ],
    ids=str,
)
def test_a_weight_that_is_kept_takes_the_faster_way_for_each_number_of_rows(monkeypatch, gains, way, plain_rows):
    monkeypatch.setattr(batchllm.device.linear, "gains_of_packing", lambda *shape: gains)
    monkeypatch.setattr(batchllm.device.linear, "packed_linear", lambda x, *_: x.new_ones(len(x), 48))
    linear = random_linear(torch.float32, bias=True)
    linear.pack(keep_plain=True)
    assert linear.way == way
    assert ways_of([linear]) == {"48x40 float32": way}
    if linear.is_packed:
        for num_rows in (0, 1, 15, 16, 255, 256, 1000):
            expected = linear.bias.expand(num_rows, 48) if num_rows in plain_rows else torch.ones(num_rows, 48)
            assert torch.equal(linear(torch.zeros(num_rows, 40)), expected)


def test_a_run_tells_how_its_matrices_are_multiplied(tiny_dir, packing_is):
    packing_is(faster=True)
    shapes = ("64x32", "32x32", "96x32", "32x48", "260x32")
    for options, element in (({"dtype": "float32"}, "float32"), ({"quantize": "int8"}, "int8")):
        llm = LLM(tiny_dir, **options)
        llm.generate([[5, 6]], SamplingParams(max_tokens=1), use_tqdm=False)
        assert llm.stats["products"] == {f"{shape} {element}": "packed" for shape in shapes}


def test_without_torchs_private_operators_nothing_is_packed(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    linear = random_linear(torch.bfloat16, bias=False)
    weight = linear.weight
    linear.pack()
    assert linear.weight is weight
