"""Nothing is fetched, and nothing is kept between runs. Set before `datasets` is imported."""

import os
import tempfile

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": tempfile.mkdtemp()}
