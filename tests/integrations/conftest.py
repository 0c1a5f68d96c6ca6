"""A folder with a requirements.txt is run by the interpreter of its own environment (`make test-integrations`), and by
no other; the rest runs with everything else.
"""

import sys
from pathlib import Path


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    apart = (collection_path / "requirements.txt").exists()
    return True if apart and Path(sys.prefix).name != collection_path.name else None
