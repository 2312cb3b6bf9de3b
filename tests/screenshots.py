"""Pictures of every page of the built book, to look at: .venv/bin/python tests/screenshots.py

Written to _build/screenshots as PAGE-WIDTH-THEME.png, the whole page each.
"""

from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

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


def photograph(browser: Browser, folder: Path) -> None:
    """Writes a picture of every page at both widths and in both themes."""
    folder.mkdir(parents=True, exist_ok=True)
    for width, theme in SETTINGS:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, reduced_motion="reduce"
        )
        for path in sorted(PAGES.glob("*.html")):
            page = context.new_page()
            page.goto(path.as_uri(), wait_until="load")
            page.evaluate("window.MathJax?.startup?.promise")
            page.screenshot(path=folder / f"{path.stem}-{width}-{theme}.png", full_page=True)
            page.close()
        context.close()


if __name__ == "__main__":
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        photograph(chromium, ROOT / "_build" / "screenshots")
        print(ROOT / "_build" / "screenshots")
