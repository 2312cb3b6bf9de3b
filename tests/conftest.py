"""What the tests share: the miniature methods are found here as in the processes that tests
start, and `repository` is a checkout of them."""

from collections.abc import Iterator
from pathlib import Path

import miniature
import pytest
from hypothesis import settings

from diffbook_lib import specs
from diffbook_lib.runs import folder

# No time limits, and the same examples in every run: a failure is of the code, not of the machine.
settings.register_profile("diffbook", deadline=None, derandomize=True)
settings.load_profile("diffbook")

specs.__path__.append(str(miniature.MINIATURES / "specs"))


@pytest.fixture
def repository(tmp_path) -> Iterator[Path]:
    """The run notebooks and presets of the miniature methods in a folder that DIFFBOOK_ROOT
    names, here and in processes that the test starts; locks that the test took end with it."""
    with miniature.opened(tmp_path) as root:
        yield root
    for held in list(folder._locks):
        folder.unlock(held)
