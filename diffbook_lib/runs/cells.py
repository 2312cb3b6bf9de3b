"""The cells of a run notebook by their tags: the one place where they are read and executed.

"data" and "network" cells make the data set and the network, "build" cells (those two among them)
everything up to `task`, "sample" cells define how image number i is drawn. Training and sampling
processes without Jupyter execute the same lines as the notebook.
"""

import json
from pathlib import Path
from typing import Any

from diffbook_lib.runs.presets import notebook_path
from diffbook_lib.specs import RunSpec, SpecError


def tagged(notebook: Path, *tags: str) -> list[str]:
    """The source of each code cell that carries one of the tags, read as plain JSON."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [
        "".join(cell["source"])
        for cell in cells
        if cell["cell_type"] == "code"
        and {*tags} & {*cell["metadata"].get("tags", [])}
    ]


def execute(spec: RunSpec, *tags: str) -> dict[str, Any]:
    """What the cells of the method's run notebook that carry one of the tags define.

    They are the repository's own code, executed here; they find the specification as `spec`.
    Raises SpecError if there is no such cell.
    """
    notebook = notebook_path(spec.method)
    sources = tagged(notebook, *tags)
    if not sources:
        raise SpecError(f"{notebook} has no cell tagged {' or '.join(tags)}")
    namespace: dict[str, Any] = {"__name__": f"nbs.{spec.method}", "spec": spec}
    for number, source in enumerate(sources, 1):
        exec(
            compile(source, f"{notebook.name}, {tags} cell {number}", "exec"),
            namespace,
        )
    return namespace


def defined(namespace: dict[str, Any], *names: str) -> list[Any]:
    """The values of names that cells must have defined; SpecError that says which they did not."""
    if missing := [name for name in names if name not in namespace]:
        raise SpecError(
            f"the cells of the run notebook define no {', '.join(missing)}"
        )
    return [namespace[name] for name in names]
