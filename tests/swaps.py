"""A function altered on purpose.

Its source is changed as text and its code swapped in place, so whoever imported it earlier sees the
change too.
"""

import inspect
import textwrap


def swap(monkeypatch, function, old, new):
    """Replaces the function's code by that of its source with `new` for `old`."""
    function = inspect.unwrap(function)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{old!r} must stand once in the source"
    changed = textwrap.indent(source.replace(old, new), "    ")
    free = function.__code__.co_freevars  # such as the class that `super()` asks for
    namespace = dict(function.__globals__)
    exec(f"def outer({', '.join(free)}):\n{changed}\n    return {function.__name__}", namespace)
    made = namespace["outer"](*[None] * len(free))
    monkeypatch.setattr(function, "__code__", inspect.unwrap(made).__code__)
