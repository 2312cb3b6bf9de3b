"""What the browser tests measure on a page of the built book."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Page

HEIGHT = 25_000  # px of a page at 1280
STRETCH = 2_500  # px without a figure or an equation
CELL_LINES = 15
TEXT = 11.0  # px of the smallest text of a figure on a phone
CONTRAST = 4.5

SEEN = "e => e.getClientRects().length > 0 && !e.closest('details:not([open]) > :not(summary)')"


def height(page: Page) -> int:
    """Pixels of the whole page."""
    found: int = page.evaluate("document.documentElement.scrollHeight")
    return found


def longest_stretch(page: Page) -> tuple[int, str]:
    """The most pixels without a figure or an equation, and the first words of what stands there.

    A table is none, nor is what is folded or less than 26 px high.
    """
    script = """() => {
      const main = document.querySelector('main'), seen = %s;
      const parts = 'img, svg, figure:not(.diffbook-table), canvas, ' +
        'mjx-container[display="true"], div.math';
      const spans = [...main.querySelectorAll(parts)].filter(seen)
        .map(e => e.getBoundingClientRect()).filter(r => r.height > 25)
        .map(r => [r.top + scrollY, r.bottom + scrollY]).sort((a, b) => a[0] - b[0]);
      let end = 0, longest = 0, from = 0;
      for (const [top, bottom] of spans) {
        if (top - end > longest) { longest = top - end; from = end; }
        end = Math.max(end, bottom);
      }
      const after = [...main.querySelectorAll('h1, h2, h3, p')].filter(seen)
        .find(e => e.getBoundingClientRect().top + scrollY >= from);
      return [Math.round(longest), after ? after.innerText.slice(0, 60) : ''];
    }"""
    found = page.evaluate(script % SEEN)
    return found[0], found[1]


def long_cells(page: Page) -> list[tuple[int, str]]:
    """Lines and first line of the cells whose visible code is longer than 15 lines."""
    script = """() => [...document.querySelectorAll('.cell_input')].filter(%s)
      .map(e => e.innerText.trim().split('\\n')).map(l => [l.length, l[0]])"""
    cells = page.evaluate(script % SEEN)
    return [(lines, first) for lines, first in cells if lines > CELL_LINES]


def scrolling_code(page: Page) -> list[tuple[int, str]]:
    """Width and first words of code that scrolls sideways, folded parts opened."""
    with unfolded(page):
        return page.evaluate(
            """() => [...document.querySelectorAll('main pre')]
              .filter(e => e.scrollWidth > e.clientWidth + 2)
              .map(e => [e.scrollWidth, e.innerText.slice(0, 60)])"""
        )


@contextmanager
def unfolded(page: Page) -> Iterator[None]:
    """Unfolds every folded part, the solutions of exercises too, and folds them again."""
    page.evaluate(
        """() => {
          document.querySelectorAll('details:not([open])').forEach(
            e => { e.open = true; e.classList.add('test-opened'); });
          document.querySelectorAll('.toggle-hidden').forEach(
            e => e.classList.replace('toggle-hidden', 'test-shown'));
        }"""
    )
    page.wait_for_timeout(300)  # until boxes that scroll are marked
    yield
    page.evaluate(
        """() => {
          document.querySelectorAll('.test-opened').forEach(
            e => { e.open = false; e.classList.remove('test-opened'); });
          document.querySelectorAll('.test-shown').forEach(
            e => e.classList.replace('test-shown', 'toggle-hidden'));
        }"""
    )


def first_place(page: Page, tag: str) -> float | None:
    """Where the first cell with this tag starts, as a share of the page; None without one."""
    return page.evaluate(
        """tag => { const cell = document.querySelector(`.tag_${tag}`);
          return cell && (cell.getBoundingClientRect().top + scrollY) /
            document.documentElement.scrollHeight; }""",
        tag,
    )


def small_texts(page: Page) -> list[tuple[float, str]]:
    """Size on the page, and alternative text, of figures whose smallest text is too small."""
    script = """() => [...document.querySelectorAll('img.diffbook-picture')]
      .filter(e => e.getClientRects().length > 0).map(image => {
        const source = image.parentElement.querySelector(':scope > source');
        const shown = source && matchMedia(source.media).matches ? source : image;
        const scale = image.clientWidth / Number(shown.getAttribute('width'));
        return [shown.dataset.textPx ? Number(shown.dataset.textPx) * scale : 1e3, image.alt];
      })"""
    with unfolded(page):
        figures = page.evaluate(script)
    return [(round(size, 1), alt) for size, alt in figures if size < TEXT]


def grounds(page: Page) -> set[str]:
    """The colours on which the pictures of a page stand, and that of the page itself."""
    script = """() => [document.body, ...document.querySelectorAll('img.diffbook-picture')]
      .map(e => {
        let ground = 'rgba(0, 0, 0, 0)';
        for (; e && /^rgba.*, 0\\)$/.test(ground); e = e.parentElement)
          ground = getComputedStyle(e).backgroundColor;
        return ground;
      })"""
    return set(page.evaluate(script))


def contrast(first: str, second: str) -> float:
    """The contrast of two colours, #rrggbb or rgb(r, g, b), as WCAG 2 has it: 1 to 21."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    """The relative luminance of a colour, 0 for black and 1 for white."""
    if colour.startswith("#"):
        levels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    else:
        levels = [int(part) for part in colour.strip("rgb()").split(",")]
    parts = [level / 255 for level in levels]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def findings(page: Page) -> list[str]:
    """What axe-core finds serious or critical, folded parts opened: one line a rule, with its first
    places."""
    from axe_playwright_python.sync_playwright import Axe

    options: dict[str, Any] = {"resultTypes": ["violations"]}
    with unfolded(page):
        violations = Axe().run(page, options=options).response["violations"]
    lines = []
    for found in violations:
        if found["impact"] in ("serious", "critical"):
            places = [node["html"][:120] for node in found["nodes"][:4]]
            lines.append(f"{found['id']} ({len(found['nodes'])}): {' | '.join(places)}")
    return lines
