"""The ledger: every numbered equation of the book, the function that computes it, and its badge.

book/equations/PAGE.yaml names, for each equation of a page, the paper's own number, the function
and how a test alters it, or the reason why nothing checks it. An equation that has neither a badge
nor a reason fails the build.
"""

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from diffbook_fold import BADGE
from diffbook_numbers import equation_number
from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

logger = logging.getLogger(__name__)
LABEL = re.compile(r'data-label="([^"]+)"')
AGAINST = re.compile(
    r"^.*?</a> (against .*?)(?:; \d+ claims of the text hold)?$", re.DOTALL
)
PLACE = '<div class="diffbook-ledger"></div>'
Entry = dict[str, Any]
Badges = dict[str, str]  # label: what its badge says, in HTML


class Ledger(Directive):
    """The place of the table, on a page that is read again when a list of equations changes."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        env = self.state.document.settings.env
        env.diffbook_ledger = env.docname
        for path in _folder(env).glob("*.yaml"):
            env.note_dependency(str(path))
        return [nodes.raw("", PLACE, format="html")]


def _folder(env: BuildEnvironment) -> Path:
    return Path(env.srcdir) / "book" / "equations"


def entries(folder: Path, page: str) -> dict[str, Entry]:
    """What is known of the equations of a page."""
    path = folder / f"{page}.yaml"
    return (yaml.safe_load(path.read_text()) or {}) if path.is_file() else {}


def badges(document: nodes.document) -> Badges:
    """What the badges of a page say, by the labels of their equations."""
    found: Badges = {}
    for output in document.findall(nodes.raw):
        for line in BADGE.findall(output.astext()):
            said = AGAINST.sub(r"\1", line)
            for label in LABEL.findall(line):
                found[label] = f"{found[label]}; {said}" if label in found else said
    return found


def faults(labels: list[str], known: Mapping[str, Entry], shown: Badges) -> list[str]:
    """What is wrong with the ledger of a page, one line each."""
    wrong = []
    for label in labels:
        entry = known.get(label, {})
        if label not in shown and not entry.get("without"):
            wrong.append(
                f"equation {label!r} has neither a badge nor a reason to have none"
            )
        if label in shown and "without" in entry:
            wrong.append(f"equation {label!r} has a badge and a reason to have none")
        if label in shown and not {"function", "altered"} <= entry.keys():
            wrong.append(
                f"equation {label!r} has a badge but no function and its alteration"
            )
    wrong += [
        f"there is no equation {label!r}" for label in known if label not in labels
    ]
    return wrong


def equations(env: BuildEnvironment) -> dict[str, list[str]]:
    """The labels of the numbered equations of each page, in the order of the book."""
    found: dict[str, list[str]] = {}
    known = env.get_domain("math").equations  # type: ignore[attr-defined]
    for label in sorted(known, key=lambda label: _place(env, label)):
        found.setdefault(known[label][0], []).append(label)
    return found


def _place(env: BuildEnvironment, label: str) -> tuple[int, ...]:
    found = equation_number(env, label)
    return tuple(int(part) for part in found[1].split(".") if part) if found else ()


def keep_badges(app: Sphinx, doctree: nodes.document) -> None:
    """Keeps what the badges of a page say, for the ledger."""
    if not hasattr(app.env, "diffbook_badges"):
        app.env.diffbook_badges = {}  # type: ignore[attr-defined]
    app.env.diffbook_badges[app.env.docname] = badges(doctree)  # type: ignore[attr-defined]


def rewrite(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """The ledger is written anew in every build."""
    page = getattr(env, "diffbook_ledger", None)
    return [page] if page in env.found_docs else []


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Warns of each fault; warnings fail the build."""
    shown = getattr(env, "diffbook_badges", {})
    for page, labels in equations(env).items():
        known = entries(_folder(env), Path(page).name)
        for fault in faults(labels, known, shown.get(page, {})):
            logger.warning(fault, location=page)


def write(
    app: Sphinx,
    pagename: str,
    template: str,
    context: dict[str, Any],
    doctree: nodes.document | None,
) -> None:
    """Puts the table into its place."""
    if doctree is not None and PLACE in context.get("body", ""):
        env = app.env
        tables = [
            _table(env, page, labels) for page, labels in equations(env).items()
        ]
        context["body"] = context["body"].replace(PLACE, "".join(tables))


def _table(env: BuildEnvironment, page: str, labels: list[str]) -> str:
    known = entries(_folder(env), Path(page).name)
    shown = getattr(env, "diffbook_badges", {}).get(page, {})
    rows = []
    for label in labels:
        entry = known.get(label, {})
        function = entry.get("function", "")
        cells = (
            html.escape(entry.get("paper", "")),
            f"<code>{html.escape(function)}</code>" if function else "",
            f'<span class="diffbook-tick">✓</span> {shown[label]}'
            if label in shown
            else f"not checked: {html.escape(entry.get('without', ''))}",
        )
        number = f'<a class="diffbook-eq" data-label="{html.escape(label)}"></a>'
        tail = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{number}</th>{tail}</tr>')
    head = "".join(
        f'<th scope="col">{text}</th>'
        for text in ("", "in the paper", "function", "checked")
    )
    title = html.escape(env.titles[page].astext())
    return (
        f'<h2>{title}</h2><div class="diffbook-scroll"><table class="diffbook-ledger">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def setup(app: Sphinx) -> None:
    """Adds the directive and the hooks."""
    app.add_directive("ledger", Ledger)
    app.connect("doctree-read", keep_badges)
    app.connect("env-updated", rewrite)
    app.connect("env-check-consistency", check)
    app.connect("html-page-context", write, priority=550)
