"""YAML of which everything means what it looks like: no references, no name twice, and no number
that YAML's older rules read as another one."""

import re
from typing import Any

import yaml

DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)")


class PlainLoader(yaml.SafeLoader):
    """Refuses, with its place, what would be read as something else than it looks like."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None):
            raise _refusal(f"a reference (&{event.anchor} or *{event.anchor})", event)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for (key, _), name in zip(node.value, names, strict=True):
            if not isinstance(name, str):
                raise _refusal(f"the name {key.value!r}, which is no text,", key)
            if names.count(name) > 1:
                raise _refusal(f"the name {name!r} twice", key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        if not DECIMAL.fullmatch(node.value):
            read = super().construct_yaml_int(node)
            hint = f"which some read as {read}; write the number, or '{node.value}' for text"
            raise _refusal(f"{node.value}, {hint},", node)
        return int(node.value)

    def construct_yaml_float(self, node: Any) -> float:
        if ":" in node.value:
            raise _refusal(
                f"{node.value}, which some read as minutes or hours,", node
            )
        return super().construct_yaml_float(node)


for _kind in ("int", "float"):
    PlainLoader.add_constructor(
        f"tag:yaml.org,2002:{_kind}", getattr(PlainLoader, f"construct_yaml_{_kind}")
    )


def plain_yaml(text: str) -> Any:
    """What a YAML text holds. Raises yaml.YAMLError for what is not plain."""
    try:
        return yaml.load(text, Loader=PlainLoader)
    except (RecursionError, ValueError) as error:
        raise yaml.YAMLError(f"it cannot be read: {error}") from None


def _refusal(what: str, node: Any) -> yaml.YAMLError:
    line = node.start_mark.line + 1
    return yaml.YAMLError(f"{what} is not allowed here (line {line})")
