"""The benchmark of the host's time, on jobs of a few requests."""

from dataclasses import replace

from benchmarks import host_time


def test_every_phase_of_every_measured_step_is_timed():
    decode = replace(host_time.JOBS["decode"], num_groups=2, num_readers=4, prefix=64, output=20, rows=8)
    steps = host_time.step_times(decode, by_phase=True)
    assert len(steps) >= decode.output // 2, "all requests decode until the first one ends"
    for step in steps:
        assert step.keys() <= {*host_time.PHASES, "total"}
        assert sum(us for phase, us in step.items() if phase != "total") <= step["total"]
    assert {phase for step in steps for phase in step} >= {*host_time.PHASES, "total"} - {"forget"}
    assert all(step.keys() == {"total"} for step in host_time.step_times(decode, by_phase=False))


def test_the_mixed_job_fills_steps_with_decodes_and_prefill():
    mixed = replace(host_time.JOBS["mixed"], num_groups=10, output=8)
    assert len(host_time.step_times(mixed, by_phase=False)) >= 2
