"""The built book in a real browser, opened from disk: nothing fails, nothing is fetched from
outside, mathematics is set, figures move by keyboard, a phone needs no sideways scrolling, and each
page keeps to the measures of the house style and to what axe-core asks."""

from itertools import product
from pathlib import Path

import measures
import pytest
from screenshots import CHROMIUM, FLAGS, PAGES, SETTINGS

from diffbook_lib import figures

pages = sorted(PAGES.glob("*.html"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path(CHROMIUM).is_file(), reason=f"no Chromium at {CHROMIUM}"),
    pytest.mark.skipif(not pages, reason="the book is not built, run make book"),
]
each_page = pytest.mark.parametrize("path", pages, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


def open_page(browser, path, **settings):
    """A page, and the list of what went wrong on it or was asked from outside."""
    page = browser.new_context(**settings).new_page()
    troubles: list[str] = []
    page.on("console", lambda m: troubles.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("requestfailed", lambda request: troubles.append(f"failed: {request.url[:200]}"))

    def outside(request):
        if not request.url.startswith(("file:", "data:", "blob:")):
            troubles.append(f"outside: {request.url}")

    page.on("request", outside)
    page.goto(path.as_uri(), wait_until="load")
    page.evaluate("window.MathJax?.startup?.promise")
    return page, troubles


@each_page
@pytest.mark.parametrize(("width", "theme"), SETTINGS)
def test_a_page_opens_without_trouble_and_fits(browser, path, width, theme):
    viewport = {"width": width, "height": 900}
    page, troubles = open_page(browser, path, viewport=viewport, color_scheme=theme)
    assert troubles == []
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if page.locator(".math").count():
        assert page.locator("mjx-container").count() > 0
        assert page.locator("mjx-merror").count() == 0
    page.context.close()


@each_page
def test_pictures_have_no_panel_behind_them_in_the_dark(browser, path):
    page, _ = open_page(browser, path, color_scheme="dark")
    grounds = page.locator(".cell_output img, .cell_output .text_html").evaluate_all(
        "elements => elements.map(e => getComputedStyle(e).backgroundColor)"
    )
    assert set(grounds) <= {"rgba(0, 0, 0, 0)"}
    page.context.close()


@each_page
def test_moving_figures_move_by_keyboard(browser, path):
    page, troubles = open_page(browser, path)
    for figure in page.locator(".diffbook-moving").all():
        slider, output = figure.locator("input[type=range]"), figure.locator("output")
        visible = figure.locator("img:not([hidden])")
        before = visible.get_attribute("alt"), visible.get_attribute("src"), output.inner_text()
        slider.focus()
        end = slider.input_value() == slider.get_attribute("max")
        page.keyboard.press("ArrowLeft" if end else "ArrowRight")
        after = visible.get_attribute("alt"), visible.get_attribute("src"), output.inner_text()
        assert visible.count() == 1
        assert all(old != new for old, new in zip(before, after, strict=True))
        assert slider.get_attribute("aria-valuetext") == after[2]
    assert troubles == []
    page.context.close()


@pytest.fixture(scope="module")
def moving_page(browser):
    """A page that has a moving figure."""
    for path in pages:
        if "diffbook-moving" in path.read_text():
            return path
    pytest.skip("no page has a moving figure")


def test_play_runs_to_the_end_and_pauses(browser, moving_page):
    page, _ = open_page(browser, moving_page)
    figure = page.locator(".diffbook-moving").first
    figure.evaluate("figure => { figure.dataset.interval = 20; }")
    button, slider = figure.locator("button"), figure.locator("input")
    button.click()
    assert button.get_attribute("aria-label") == "Pause"
    page.wait_for_function(
        "input => input.value === input.max", arg=slider.element_handle(), timeout=5000
    )
    page.wait_for_timeout(100)
    assert button.get_attribute("aria-label") == "Play"
    page.context.close()


def test_who_wants_less_motion_has_the_slider_only(browser, moving_page):
    page, _ = open_page(browser, moving_page, reduced_motion="reduce")
    figure = page.locator(".diffbook-moving").first
    assert not figure.locator("button").is_visible()
    assert figure.locator("input").is_visible()
    page.context.close()


def test_without_scripts_one_frame_is_shown_and_no_dead_controls(browser, moving_page):
    page, _ = open_page(browser, moving_page, java_script_enabled=False)
    figure = page.locator(".diffbook-moving").first
    assert figure.locator("img:visible").count() == 1
    assert not figure.locator("input").is_visible()
    page.context.close()


@pytest.fixture(scope="module", params=pages, ids=lambda path: path.stem)
def laptop(request, browser):
    """A page at 1280 pixels, as those see it who want less motion."""
    viewport = {"width": 1280, "height": 1000}
    page, _ = open_page(browser, request.param, viewport=viewport, reduced_motion="reduce")
    yield page
    page.context.close()


def test_a_page_is_not_too_long(laptop):
    assert measures.height(laptop) <= measures.HEIGHT


def test_a_figure_or_an_equation_is_never_far(laptop):
    stretch, after = measures.longest_stretch(laptop)
    assert stretch <= measures.STRETCH, f"{stretch} px after {after!r}"


def test_visible_code_is_short(laptop):
    assert measures.long_cells(laptop) == []


def test_code_does_not_scroll_sideways(laptop):
    assert measures.scrolling_code(laptop) == []


@pytest.mark.parametrize(("tag", "before"), [("generated", 0.3), ("digits", 0.5)])
def test_a_chapter_shows_early_what_it_is_for(laptop, tag, before):
    if not laptop.locator(".diffbook-moving").count():
        pytest.skip("no chapter")
    place = measures.first_place(laptop, tag)
    assert place is not None, f"no cell has the tag {tag}"
    assert place < before


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_has_no_serious_finding(laptop, theme):
    laptop.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
    assert measures.findings(laptop) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_figures_have_contrast_to_the_ground_they_stand_on(laptop, theme):
    laptop.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
    for colour, ground in product(figures.COLOURS, measures.grounds(laptop)):
        assert measures.contrast(colour, ground) >= measures.CONTRAST, (colour, ground)


@each_page
def test_texts_of_figures_can_be_read_on_a_phone(browser, path):
    page, _ = open_page(browser, path, viewport={"width": 390, "height": 844})
    assert measures.small_texts(page) == []
    page.context.close()


WRONG = """<main><div class="bd-article"><p>first</p><div style="height: 2600px"></div>
<svg height="30"></svg><div class="tag_digits"><div class="cell_input">{code}</div></div>
<details><summary>more</summary><div class="cell_input">{code}</div><pre>{wide}</pre></details>
<picture><source media="(max-width: 600px)" srcset="data:," width="100" data-text-px="12">
<img class="diffbook-picture" src="data:," alt="a" width="800" height="10" data-text-px="12"
style="max-width: 400px"></picture><p style="color: #ccc; background: #fff">pale</p>
</div></main>"""


def test_the_measures_see_what_is_wrong(browser):
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.set_content(WRONG.format(code="x<br>" * 16, wide="x" * 900))
    assert measures.height(page) > 2600
    stretch, after = measures.longest_stretch(page)
    assert 2600 < stretch < 2700 and after == "first"
    assert measures.long_cells(page) == [(16, "x")]
    assert measures.scrolling_code(page)[0][1] == "x" * 60
    assert 0.7 < measures.first_place(page, "digits") < 1
    assert measures.first_place(page, "generated") is None
    assert measures.small_texts(page) == [(6.0, "a")]
    assert any(line.startswith("color-contrast (1)") for line in measures.findings(page))
    page.context.close()


def test_contrast_is_that_of_the_guidelines():
    assert measures.contrast("#ffffff", "rgb(0, 0, 0)") == pytest.approx(21)
    assert measures.contrast("rgb(117, 117, 117)", "#ffffff") == pytest.approx(4.61, abs=0.01)
    assert measures.contrast("#757575", "#000000") == pytest.approx(4.56, abs=0.01)
