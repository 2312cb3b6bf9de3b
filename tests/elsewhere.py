"""A test of golden numbers as it is when DIFFBOOK_GOLDEN names another folder."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from pytest import MonkeyPatch


def loaded_with(
    test: str, content: dict[str, Any], folder: Path, monkeypatch: MonkeyPatch
) -> ModuleType:
    """The test file tests/test_golden_<method>.py, loaded once more, with <method>.json of this
    content in `folder`."""
    method = Path(test).stem.removeprefix("test_golden_")
    (folder / f"{method}.json").write_text(json.dumps(content))
    monkeypatch.setenv("DIFFBOOK_GOLDEN", str(folder))
    spec = importlib.util.spec_from_file_location("golden_elsewhere", test)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
