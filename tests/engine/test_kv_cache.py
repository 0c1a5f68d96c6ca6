"""The KV pool: its layout, its size in bytes, and how much memory a machine or a container can give."""

from pathlib import Path

import pytest
import torch

from batchllm import LLM
from batchllm.device.kv_cache import PagedKVCache, available_memory_bytes
from batchllm.models.layer_spec import AttentionSpec
from tests.test_module import run_python

MIB = 2**20
MEMINFO = f"MemTotal:  {64 * 1024} kB\nMemFree:  {1 * 1024} kB\nMemAvailable:  {32 * 1024} kB\nHugePages_Total: 0\n"
V1_UNLIMITED = 9223372036854771712


def fake_root(root: Path, cgroup: str, files: dict[str, object]) -> Path:
    """A file system with 32 MiB available, this process's cgroup line(s), and files under sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(MEMINFO)
    if cgroup:
        (root / "proc/self/cgroup").write_text(cgroup + "\n")
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def v2(path: str, limit: object, current: int, inactive_file: int = 0) -> dict[str, object]:
    return {
        f"{path}memory.max": limit,
        f"{path}memory.current": current,
        f"{path}memory.stat": f"anon 5\ninactive_file {inactive_file}\nactive_file 7",
    }


def v1(path: str, limit: int, usage: int, inactive_file: int = 0) -> dict[str, object]:
    return {
        f"memory/{path}memory.limit_in_bytes": limit,
        f"memory/{path}memory.usage_in_bytes": usage,
        f"memory/{path}memory.stat": f"inactive_file 3\ntotal_inactive_file {inactive_file}",
    }


V1_LINES = "12:cpu,cpuacct:/other\n5:memory:/docker/abc\n1:name=systemd:/\n0::/"

CASES = {
    "no cgroup": ("", {}, 32 * MIB),
    "v2, no files": ("0::/user.slice", {}, 32 * MIB),
    "v2, no limit": ("0::/job", v2("job/", "max", 5 * MIB), 32 * MIB),
    "v2": ("0::/job", v2("job/", 8 * MIB, 5 * MIB), 3 * MIB),
    "v2, file cache can be reclaimed": ("0::/job", v2("job/", 8 * MIB, 5 * MIB, 2 * MIB), 5 * MIB),
    "v2, limit in a parent": (
        "0::/pod/job",
        v2("pod/job/", "max", 1 * MIB) | v2("pod/", 8 * MIB, 6 * MIB),
        2 * MIB,
    ),
    "v2, the tightest of all": (
        "0::/pod/job",
        v2("pod/job/", 9 * MIB, 1 * MIB) | v2("pod/", 8 * MIB, 4 * MIB) | v2("", 64 * MIB, 0),
        4 * MIB,
    ),
    "v2, container that sees its own root": ("0::/host/path/abc", v2("", 8 * MIB, 7 * MIB), 1 * MIB),
    "v2, container in its own namespace": ("0::/", v2("", 8 * MIB, 7 * MIB), 1 * MIB),
    "v2, another group's limit is not ours": ("0::/job", v2("other/", 1 * MIB, 1 * MIB), 32 * MIB),
    "v2, over its limit": ("0::/job", v2("job/", 8 * MIB, 9 * MIB), 0),
    "v2, limit above the machine": ("0::/job", v2("job/", 999 * MIB, 0), 32 * MIB),
    "v2, no memory.stat": ("0::/job", {"job/memory.max": 8 * MIB, "job/memory.current": 5 * MIB}, 3 * MIB),
    "v1": (V1_LINES, v1("docker/abc/", 8 * MIB, 5 * MIB, 1 * MIB), 4 * MIB),
    "v1, container that sees its own root": (V1_LINES, v1("", 8 * MIB, 7 * MIB), 1 * MIB),
    "v1, limit in a parent": (
        V1_LINES,
        v1("docker/abc/", V1_UNLIMITED, 1 * MIB) | v1("docker/", 8 * MIB, 6 * MIB),
        2 * MIB,
    ),
    "v1, no limit": (V1_LINES, v1("docker/abc/", V1_UNLIMITED, 5 * MIB), 32 * MIB),
}

# The second has heads of its own.
LAYERS = [AttentionSpec(4, 2, 8, 1.0), AttentionSpec(4, 1, 12, 1.0), AttentionSpec(4, 2, 8, 1.0)]
SHAPES = [(5, 4, 2, 8), (5, 4, 1, 12), (5, 4, 2, 8)]
ELEMENTS_PER_TOKEN = 2 * (2 * 8 + 1 * 12 + 2 * 8)


@pytest.mark.parametrize(("cgroup", "files", "available"), CASES.values(), ids=CASES)
def test_available_memory_is_the_least_of_machine_and_cgroups(tmp_path, cgroup, files, available):
    assert available_memory_bytes(fake_root(tmp_path, cgroup, files)) == available


def test_this_machine_has_memory():
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total = int(meminfo["MemTotal"].split()[0]) * 1024
    assert 0 < available_memory_bytes() <= total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pages_of_all_layers_are_apart_and_of_the_size_announced(dtype):
    cache = PagedKVCache.allocate(LAYERS, num_pages=5, page_size=4, dtype=dtype)
    pages = [*cache.k_pages, *cache.v_pages]
    assert [page.shape for page in cache.k_pages] == [page.shape for page in cache.v_pages] == SHAPES
    assert all(page.dtype == dtype and page.is_contiguous() for page in pages)
    assert sum(page.nbytes for page in pages) == 5 * 4 * ELEMENTS_PER_TOKEN * dtype.itemsize
    for value, page in enumerate(pages):
        page.fill_(value)
    assert [page.unique().tolist() for page in pages] == [[value] for value in range(len(pages))]


@pytest.mark.parametrize("family", ["llama", "llama-mha-wide-heads", "qwen3-window"])
def test_a_token_takes_the_bytes_that_the_description_says(tiny_model, family):
    llm = LLM(tiny_model(family), dtype="float32", kv_cache_tokens=160)
    pages = [*llm.engine.kv_cache.k_pages, *llm.engine.kv_cache.v_pages]
    assert llm.config.dtype == "float32"
    assert sum(page.nbytes for page in pages) == 160 * llm.config.kv_bytes_per_token


def test_a_pool_the_machine_refuses_is_named_with_its_size():
    num_pages = 2**40
    size_gib = num_pages * 4 * ELEMENTS_PER_TOKEN * 4 / 2**30
    with pytest.raises(
        MemoryError, match=f"kv_cache_tokens: a pool of {num_pages * 4} tokens needs {size_gib:.1f} GiB"
    ):
        PagedKVCache.allocate(LAYERS, num_pages=num_pages, page_size=4, dtype=torch.float32)


def test_a_process_with_two_pools_can_still_fork():
    """Each of them is granted, although both together are more than the machine has."""
    program = """
        import os, torch
        from batchllm.device.kv_cache import PagedKVCache
        from batchllm.models.layer_spec import AttentionSpec

        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        layers = [AttentionSpec(num_qo_heads=1, num_kv_heads=1, head_dim=64, softmax_scale=1.0)]
        num_pages = int(0.7 * memory) // (2 * 16 * 64 * 4)
        pools = [PagedKVCache.allocate(layers, num_pages, 16, torch.float32) for _ in range(2)]
        child = os.fork()
        if child == 0:
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    """
    run_python(program)
