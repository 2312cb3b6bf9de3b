"""Pictures of every page of the built book, to look at: .venv/bin/python tests/screenshots.py

Written to _build/screenshots: PAGE-WIDTH-THEME.png is the whole page, PAGE-WIDTH-THEME-NN.jpg one
screen of it. Names of pages as arguments choose some.
"""

import sys
from itertools import product
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "_build" / "html" / "book"
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SETTINGS = [(width, theme) for width in (1280, 390) for theme in ("light", "dark")]


HEIGHT = 900


def photograph(browser: Browser, folder: Path, names: list[str]) -> None:
    """Writes pictures of these pages (none: of every page) at both widths and in both themes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [path for path in sorted(PAGES.glob("*.html")) if not names or path.stem in names]
    for (width, theme), path in product(SETTINGS, paths):
        viewport = {"width": width, "height": HEIGHT}
        context = browser.new_context(
            viewport=viewport, color_scheme=theme, reduced_motion="reduce"
        )
        page = context.new_page()
        page.goto(path.as_uri(), wait_until="load")
        page.evaluate("window.MathJax?.startup?.promise")
        screens(page, folder / f"{path.stem}-{width}-{theme}")
        context.close()


def screens(page: Page, stem: Path) -> None:
    """Writes the screens of a page one after the other, then the whole page."""
    for old in stem.parent.glob(f"{stem.name}-*.jpg"):
        old.unlink()
    height = page.evaluate("document.documentElement.scrollHeight")
    for number, top in enumerate(range(0, height, HEIGHT)):
        page.evaluate("top => scrollTo({top, behavior: 'instant'})", top)
        page.wait_for_timeout(100)  # until what sticks has moved
        page.screenshot(path=f"{stem}-{number:02}.jpg", type="jpeg", quality=80)
    page.evaluate("scrollTo({top: 0, behavior: 'instant'})")
    page.screenshot(path=f"{stem}.png", full_page=True, timeout=120_000)


if __name__ == "__main__":
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        photograph(chromium, ROOT / "_build" / "screenshots", sys.argv[1:])
        print(ROOT / "_build" / "screenshots")
