"""Progress bars, as text or as a widget."""

import os
from typing import Any


def progress_bar() -> Any:
    """tqdm as text where papermill passes it on to a terminal and where it is disabled (its
    widget does not heed TQDM_DISABLE), else as what fits."""
    if os.environ.get("DIFFBOOK_TEXT_BAR") or os.environ.get("TQDM_DISABLE"):
        from tqdm import tqdm
    else:
        from tqdm.auto import tqdm
    return tqdm
