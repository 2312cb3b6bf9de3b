"""Numbers of equations, figures and tables in what cells show and in what the text refers to.

Equations are numbered by Sphinx. Figures and tables of cells are numbered here, in the order of the
page, after the number of its chapter; {fig}`name` and {tab}`name` refer to them.
"""

import re
from collections import Counter
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

logger = logging.getLogger(__name__)
CAPTION = re.compile(
    r'<span class="diffbook-number" data-kind="(\w+)" data-name="([\w-]+)"></span>'
)
REFERENCE = re.compile(
    r'<a class="diffbook-ref" data-kind="(\w+)" data-name="([\w-]+)"></a>'
)
EQUATION = re.compile(
    r'<(?P<tag>a|span) class="diffbook-eq" data-label="(?P<label>[^"]+)">[^<]*</(?P=tag)>'
)
ANCHORS = {"Figure": "fig", "Table": "tab"}


class Reference(SphinxRole):
    """A place for the number of a figure or a table of the same page."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        place = f'<a class="diffbook-ref" data-kind="{self.kind}" data-name="{self.text}"></a>'
        return [nodes.raw("", place, format="html")], []


def equation_number(env: BuildEnvironment, label: str) -> tuple[str, str] | None:
    """The page of an equation and its printed number; None where there is no such label."""
    known = env.get_domain("math").equations.get(label)  # type: ignore[attr-defined]
    if known is None:
        return None
    page = known[0]
    numbers = env.toc_fignumbers.get(page, {}).get("displaymath", {})
    number = numbers.get(nodes.make_id(f"equation-{label}"), ())
    return page, ".".join(map(str, number))


def number_captions(body: str, chapter: str) -> tuple[str, dict[tuple[str, str], str]]:
    """The page with numbered captions, and the number of each (kind, name)."""
    counts: Counter[str] = Counter()
    numbers: dict[tuple[str, str], str] = {}

    def write(place: re.Match[str]) -> str:
        kind, name = place.groups()
        counts[kind] += 1
        numbers[kind, name] = f"{chapter}{counts[kind]}"
        return f'<span class="diffbook-number">{kind} {numbers[kind, name]}.</span> '

    return CAPTION.sub(write, body), numbers


def write_numbers(
    app: Sphinx,
    pagename: str,
    template: str,
    context: dict[str, Any],
    doctree: nodes.document | None,
) -> None:
    """Numbers the captions of a page and fills the places that refer to them and to equations."""
    if doctree is None or "body" not in context:
        return
    chapter = app.env.toc_secnumbers.get(pagename, {}).get("", ())[:1]
    body, numbers = number_captions(context["body"], "".join(f"{n}." for n in chapter))

    def refer(place: re.Match[str]) -> str:
        kind, name = place.groups()
        if (kind, name) not in numbers:
            logger.warning(
                f"the page has no {kind.lower()} named {name!r}", location=pagename
            )
        return (
            f'<a href="#{ANCHORS[kind]}-{name}">{kind} {numbers.get((kind, name))}</a>'
        )

    def point(place: re.Match[str]) -> str:
        label = place["label"]
        found = equation_number(app.env, label)
        if found is None:
            logger.warning(f"there is no equation {label!r}", location=pagename)
            return label
        page, number = found
        if place["tag"] == "span":
            return f"({number})"
        where = app.builder.get_relative_uri(pagename, page)
        return f'<a href="{where}#{nodes.make_id(f"equation-{label}")}">({number})</a>'

    context["body"] = EQUATION.sub(point, REFERENCE.sub(refer, body))


def setup(app: Sphinx) -> None:
    """Adds the roles and the hook."""
    app.add_role("fig", Reference("Figure"))
    app.add_role("tab", Reference("Table"))
    app.connect("html-page-context", write_numbers, priority=600)
