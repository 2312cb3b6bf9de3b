"""The library's own source on the page: one source of truth."""

import ast
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

from IPython.display import Markdown, display

TYPING = re.compile(r" +# type: ignore.*")


def show_source(*objects: Any, docstring: bool = False) -> None:
    """Puts the library's own source of functions, classes or methods on the page, without the
    comments that are for the type checker."""
    for thing in objects:
        lines, first = inspect.getsourcelines(thing)
        source = textwrap.dedent("".join(lines)).rstrip()
        shown = TYPING.sub("", source if docstring else _without_docstring(source))
        title = f"`{thing.__module__}.{thing.__qualname__}` ({_place(thing)}, line {first})"
        display(Markdown(f"{title}\n\n```python\n{shown}\n```"))


def _place(thing: Any) -> str:
    """The file of a thing, from the folder that holds the library."""
    path = Path(inspect.getsourcefile(thing) or "")
    root = Path(__file__).parents[2]
    return (
        path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    )


def _without_docstring(source: str) -> str:
    """The source without the docstring of the function or class itself."""
    body = ast.parse(source).body[0].body  # type: ignore[attr-defined]
    if not (
        isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
    ):
        return source
    if len(body) == 1 or not isinstance(body[0].value.value, str):
        return source
    lines = source.splitlines()
    after = lines[body[0].end_lineno :]
    while after and not after[0].strip():
        after = after[1:]
    return "\n".join(lines[: body[0].lineno - 1] + after)
