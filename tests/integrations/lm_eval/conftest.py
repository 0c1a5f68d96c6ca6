"""Nothing is fetched. Set before `datasets` is imported."""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
