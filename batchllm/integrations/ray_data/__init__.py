"""Jobs on a cluster of Ray: one plan of the whole job, and replicas, engines of ours, that answer parcels of it.

answer_dataset   a Dataset with prompts, or conversations, becomes one with their answers
run_job_on_ray   a file of requests becomes a directory of answers; `batchllm run --ray` is this call
"""

from batchllm.integrations.requirement import require

require("ray", ">=2.60,<2.61", install="batchllm-ext[ray]")

from batchllm.integrations.ray_data.dataset import answer_dataset  # noqa: E402
from batchllm.integrations.ray_data.job import run_job_on_ray  # noqa: E402

__all__ = ["answer_dataset", "run_job_on_ray"]
