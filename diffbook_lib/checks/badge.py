"""A check that holds, as one line: under an equation of the page, or in a terminal."""

import html
from collections.abc import Callable, Iterable
from dataclasses import dataclass


class CheckFailed(AssertionError):
    """A claim of the page does not hold; the message names it and the worst place."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of the frames of this module."""
        return [f"✗ {self}"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    name: an equation's label, after a comma what it was looked at; or a claim.
    result: what was found, in words. way: the independent way that the equation was
    compared with; empty for a claim. count, gap: how many values were compared and
    their largest difference; 0 for an inequality.
    """

    name: str
    result: str
    way: str = ""
    count: int = 0
    gap: float = 0.0

    @property
    def label(self) -> str:
        """The name up to its first comma."""
        return self.name.partition(",")[0]


@dataclass(frozen=True)
class Badge:
    """One finding or several in one line.

    A notebook shows it as HTML, where the book's build writes the equations' numbers
    over their labels; elsewhere it is text.
    """

    findings: tuple[Finding, ...]

    def __repr__(self) -> str:
        lines = [f"✓ {_line(self.findings, str, str)}"]
        if len(self.findings) > 1:
            lines += [f"  {f.name}: {f.result}" for f in self.findings]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        line = _line(self.findings, _reference, _unbroken)
        shown = f'<p class="diffbook-badge"><span>✓</span> {line}</p>'
        if len(self.findings) > 1:
            items = (html.escape(f"{f.name}: {f.result}") for f in self.findings)
            rows = "".join(f"<li>{item}</li>" for item in items)
            shown += f'<ul class="diffbook-findings">{rows}</ul>'
        return shown


def together(*badges: Badge) -> Badge:
    """Several checks as one line. Raises ValueError for none."""
    if not badges:
        raise ValueError("together() needs at least one badge")
    return Badge(tuple(finding for badge in badges for finding in badge.findings))


def _unbroken(text: str) -> str:
    """Text as HTML in which a number such as 3e-12 stays on its line."""
    return html.escape(text).replace("e-", "e\N{NON-BREAKING HYPHEN}")


def _reference(label: str) -> str:
    """The place of an equation's number."""
    label = html.escape(label)
    return f'<a class="diffbook-eq" data-label="{label}">({label})</a>'


def _line(
    findings: tuple[Finding, ...],
    refer: Callable[[str], str],
    write: Callable[[str], str],
) -> str:
    """What the findings say together; `refer` writes an equation's label, `write` all
    else."""
    compared = [f for f in findings if f.way]
    claims = [f for f in findings if not f.way]
    parts = []
    if compared:
        labels = ", ".join(
            refer(label) for label in _unique(f.label for f in compared)
        )
        ways = write("; ".join(_unique(f.way for f in compared)))
        parts.append(f"{labels} against {ways}: {write(_summary(compared))}")
    if len(claims) == 1:
        parts.append(write(f"{claims[0].name}: {claims[0].result}"))
    elif claims:
        parts.append(f"{len(claims)} claims of the text hold")
    return "; ".join(parts)


def _summary(compared: list[Finding]) -> str:
    count = sum(f.count for f in compared)
    if count:
        values = "1 value" if count == 1 else f"{count:,} values"
        gap = max(f.gap for f in compared)
        return f"{values}, agreement {gap:.1g}" if gap else f"{values}, equal"
    if len(compared) == 1:
        return compared[0].result
    return f"{len(compared)} comparisons hold"


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
