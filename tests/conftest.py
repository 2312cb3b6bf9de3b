"""What the tests share: the miniature methods are found here as in the processes that tests
start, and `repository` is a checkout of them."""

from collections.abc import Iterator
from pathlib import Path

import miniature
import pytest

from diffbook_lib import specs
from diffbook_lib.runs import folder

specs.__path__.append(str(miniature.MINIATURES / "specs"))


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Iterator[Path]:
    """The run notebooks and presets of the miniature methods in a folder that DIFFBOOK_ROOT
    names; locks that the test took end with it."""
    monkeypatch.setenv("DIFFBOOK_ROOT", str(tmp_path))
    yield miniature.write(tmp_path)
    for held in list(folder._locks):
        folder.unlock(held)
