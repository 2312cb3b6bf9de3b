"""The built book: from the current sources, complete, light, and with a text for every picture.

The book itself is built by `make book`; these tests read it.
"""

import re
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[1]
HTML = ROOT / "_build" / "html"
PAGES = sorted((HTML / "book").glob("*.html"))
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import diffbook_cache  # noqa: E402
import diffbook_pages  # noqa: E402

built = pytest.mark.skipif(not PAGES, reason="the book is not built, run make book")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def sources() -> list[Path]:
    """The files of the pages that the table of contents names."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    names = [toc["root"]]
    names += [page["file"] for part in toc["parts"] for page in part["chapters"]]
    return [next(ROOT.glob(f"{name}.*")) for name in names]


@built
@pytest.mark.slow
def test_every_page_is_built_from_its_present_source():
    for source in sources():
        page = HTML / "book" / f"{source.stem}.html"
        assert page.is_file(), f"{page} is missing, run make book"
        assert page.stat().st_mtime >= source.stat().st_mtime, f"{source} is newer, run make book"


@built
@pytest.mark.slow
def test_the_notebooks_ran_with_the_present_library():
    assert diffbook_cache.pending(ROOT) == [], "run make book"


@built
@each_page
def test_a_page_weighs_at_most_3_mb(page):
    pictures = re.findall(r'src="(\.\./_images/[^"]+)"', page.read_text())
    weight = page.stat().st_size + sum((page.parent / name).stat().st_size for name in pictures)
    assert weight <= 3e6


@built
@each_page
def test_a_page_says_its_cost_at_its_top(page):
    text = page.read_text()
    article = text[text.index("</h1>", text.index("<article")) :][:1500]
    assert re.search(
        r'class="diffbook-cost"[^<]*>(Running this page took [\d.]+ |Nothing)', article
    )


@built
@each_page
def test_every_picture_has_an_alternative_text(page):
    text = page.read_text()
    article = text[text.index("<article") : text.index("</article>")]
    assert diffbook_pages.faults(article) == []


@built
@each_page
def test_a_page_loads_nothing_from_outside(page):
    loading = r"<(?:script|img|iframe|source)[^>]* src=\"https?:|<link[^>]* href=\"https?:"
    assert re.findall(loading, page.read_text()) == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("[bn]*/*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and not cell.get("execution_count")


@pytest.mark.parametrize(
    "html",
    [
        '<img src="a.png">',
        '<img src="a.png" alt="">',
        '<img src="../_images/a.png" alt="../_images/a.png">',
        '<img src="../_images/a.png" alt="a.png">',
        '<svg role="img"></svg>',
        '<p id="moving-a"></p><p id="moving-a"></p>',
    ],
)
def test_a_picture_without_text_is_a_fault(html):
    assert len(diffbook_pages.faults(html)) == 1


def test_a_picture_with_a_text_is_none():
    html = '<img src="a.png" alt="A falling line."><svg role="img" aria-label="A line"></svg><svg>'
    assert diffbook_pages.faults(html + '<i id="moving-a"></i><i id="moving-b"></i>') == []
