"""The device that an estimate is for: from a data sheet, or this machine's CPU as measured."""

from __future__ import annotations

from typing import Any

from batchllm.estimate.roofline import DEVICES, Device

THIS_CPU = "cpu"
# 30 layers of some rows took as much on one thread, beside their products and attention.
CPU_STEP_OVERHEAD_S = 5e-3


def device_by_name(name: str, dtype: Any, quantize: str | None) -> Device:
    """`name`: THIS_CPU or one of DEVICES; `dtype` and `quantize` as EngineOptions takes them. Raises ValueError for
    types that the device does not multiply."""
    if name == THIS_CPU:
        return _this_cpu(dtype, quantize)
    if quantize is not None:
        raise ValueError(f"quantize: {quantize!r} is for a CPU, and device is {name!r}")
    if dtype not in ("auto", "bfloat16"):
        raise ValueError(f"dtype: expected 'auto' or 'bfloat16' for {name!r}, got {dtype!r}")
    return DEVICES[name]


def _this_cpu(dtype: Any, quantize: str | None) -> Device:
    """A function, because importing torch takes seconds."""
    import torch

    from batchllm.device.choice import CPU, choose_device, choose_dtype
    from batchllm.device.cpu_rates import cpu_rates
    from batchllm.device.cpu_share import default_num_threads
    from batchllm.device.kv_cache import available_memory_bytes
    from batchllm.device.measurements import cpu_name

    choose_device("cpu", dtype, quantize)
    torch_dtype = choose_dtype(dtype, quantize, CPU)
    num_threads = default_num_threads(torch.get_num_threads())
    measured = cpu_rates(torch_dtype, quantize, num_threads)
    rates, dtype_name = measured.rates, str(torch_dtype).removeprefix("torch.")
    where = "measured here" if measured.was_quiet else "measured here while others used it, and not kept"
    return Device(
        name=f"{cpu_name()}, {quantize or dtype_name}, threads: {num_threads} ({where}: products "
        f"{rates.product_flops_per_s / 1e9:,.0f} GFLOP/s, attention {rates.attention_flops_per_s / 1e9:,.0f} GFLOP/s, "
        f"weights {rates.weight_bytes_per_s / 1e9:,.1f} GB/s)",
        flops_per_s=rates.product_flops_per_s,
        bytes_per_s=rates.weight_bytes_per_s,
        memory_bytes=available_memory_bytes(),
        matmul_efficiency=1.0,
        attention_efficiency=rates.attention_flops_per_s / rates.product_flops_per_s,
        bandwidth_efficiency=1.0,
        step_overhead_s=CPU_STEP_OVERHEAD_S,
        dtype=dtype_name,
        linear_element_bytes=1 if quantize else None,
        reads_while_multiplying=False,
    )
