"""What a page shows of its cells, by their tags, and blocks of a page that are folded.

check: the badge in one line, the code folds out of it. plot: the output, the code folded under it.
setup: the code folded, the output after it. source: the output alone. Other cells show all.
"""

import re
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging

logger = logging.getLogger(__name__)
LINK = re.compile(r'<a (class="diffbook-eq" data-label="[^"]+")>[^<]*</a>')
NUMBER = r"<span \1></span>"  # a summary is a button: it may hold no link
BADGE = re.compile(r'<p class="diffbook-badge">(.*?)</p>', re.DOTALL)


class FoldStart(Directive):
    """Opens a folded block: its title is all that shows until a reader asks for more."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = False

    def run(self) -> list[nodes.Node]:
        title = nodes.Text(self.arguments[0]).astext()
        text, _ = self.state.inline_text(title, self.lineno)
        return [
            _html('<details class="diffbook-fold"><summary>'),
            nodes.inline("", "", *text),
            _html("</summary>"),
        ]


class FoldEnd(Directive):
    """Closes the folded block."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        return [_html("</details>")]


class ShowCells(SphinxPostTransform):
    """Arranges the cells of a page as their tags say."""

    default_priority = 190  # after myst-nb chose what to show of an output
    formats = ("html",)
    folds: ClassVar = {"tag_plot": "Code of the figure", "tag_setup": "Set-up"}

    def run(self, **_: object) -> None:
        for cell in list(self.document.findall(nodes.container)):
            if cell.get("nb_element") != "cell_code":
                continue
            for tag in cell["classes"]:
                if tag == "tag_check":
                    self.show_badge(cell)
                elif tag in self.folds:
                    self.fold_code(cell, tag)
                elif tag == "tag_source" and (code := _part(cell, "cell_code_source")):
                    cell.remove(code)

    def show_badge(self, cell: nodes.container) -> None:
        """The badge is the line that opens the code."""
        code = _part(cell, "cell_code_source")
        lines = []
        for output in cell.findall(nodes.raw):
            lines += BADGE.findall(output.astext())
            if BADGE.search(output.astext()):
                output.children = [nodes.Text(BADGE.sub("", output.astext()))]
        if not lines or code is None:
            logger.warning("a cell with the tag check shows no badge", location=cell)
            return
        badges = "<br>".join(
            f'<span class="diffbook-badge">{LINK.sub(NUMBER, line)}</span>'
            for line in lines
        )
        cell.insert(
            0, _html(f'<details class="diffbook-check"><summary>{badges}</summary>')
        )
        cell.append(_html("</details>"))

    def fold_code(self, cell: nodes.container, tag: str) -> None:
        """The code behind its summary: under a figure, before what a set-up shows."""
        code = _part(cell, "cell_code_source")
        if code is None:
            return
        cell.remove(code)
        opened = _html(
            f'<details class="diffbook-code"><summary>{self.folds[tag]}</summary>'
        )
        at = len(cell) if tag == "tag_plot" else 0
        cell[at:at] = [opened, code, _html("</details>")]


def _part(cell: nodes.container, element: str) -> nodes.Element | None:
    return next(
        (part for part in cell.children if part.get("nb_element") == element), None
    )


def _html(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")


def setup(app: Sphinx) -> None:
    """Adds the directives and the transform."""
    app.add_directive("fold-start", FoldStart)
    app.add_directive("fold-end", FoldEnd)
    app.add_post_transform(ShowCells)
