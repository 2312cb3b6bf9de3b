"""Figures: alternative texts, both faces of the moving figure, grids, paths and shown source."""

import base64
import inspect
import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from diffbook_lib import data, figures, rng
from diffbook_lib.errors import Refused
from diffbook_lib.figures import frames, picture, source, stills, tables
from diffbook_lib.nets.edm2 import primitives


@pytest.fixture
def shown(monkeypatch):
    """What figures displays, instead of IPython's display."""
    displayed = []
    for module in (frames, source, stills, tables):
        monkeypatch.setattr(module, "display", displayed.append)
    yield displayed
    plt.close("all")


@pytest.fixture
def page(monkeypatch):
    """The face of the built page."""
    monkeypatch.setenv("DIFFBOOK_PAGE", "1")


def line(ax, value=5):
    ax.plot([0, 1], [0, value])
    ax.set(ylim=(0, 10))


def move(values=(1, 2, 5), draw=line, **changes):
    settings = {"name": "slope", "label": "slope", "alt": lambda value: f"a line of slope {value}"}
    figures.moving(values, draw, **(settings | {"caption": "See it rise."} | changes))


def show(draw=line, **changes):
    settings = {"name": "slope", "alt": "a line", "caption": "See it rise."}
    figures.show(draw, **(settings | changes))


def pixels_of(tag: str) -> np.ndarray:
    """The pixels of an <img> with its own data."""
    data = re.search('data:image/webp;base64,([^"]+)', tag).group(1)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_show_carries_its_texts_its_anchor_and_a_transparent_ground(shown):
    show(alt='rising "line"', caption="A < B")
    html = shown[0].data
    assert (
        'alt="rising &quot;line&quot;"' in html and 'class="diffbook-figure" id="fig-slope"' in html
    )
    number = '<span class="diffbook-number" data-kind="Figure" data-name="slope"></span>'
    assert f"<figcaption>{number}A &lt; B</figcaption>" in html
    assert "max-width:100%" in html
    pixels = pixels_of(html)
    assert pixels.shape[-1] == 4 and pixels[0, 0, 3] == 0
    assert not plt.get_fignums()


def forms_of(html: str) -> list[tuple[int, int, float | None]]:
    """Width, height and smallest text of the narrow and the wide form."""
    tags = re.findall("<(?:source|img) [^>]+>", html)
    assert tags[0].startswith('<source media="(max-width: 600px)" srcset="data:image/webp')
    found = []
    for tag in tags:
        width, height = (
            int(re.search(f' {side}="(\\d+)"', tag)[1]) for side in ("width", "height")
        )
        text = re.search('data-text-px="([^"]+)"', tag)
        found.append((width, height, float(text[1]) if text else None))
    return found


@pytest.mark.parametrize(
    ("panels", "size", "height"),
    [((1, 1), (8.4, 3.4), 220), ((1, 3), (8.4, 3.0), 960), ((2, 2), (8.4, 6.0), 1000)],
)
def test_a_page_has_a_wide_and_a_narrow_form(shown, page, panels, size, height):
    given = []

    def draw(axes):
        given.append(axes)
        for ax in axes if isinstance(axes, list) else [axes]:
            line(ax)

    show(draw, panels=panels, size=size)
    narrow, wide = forms_of(shown[0].data)
    assert wide[:2] == (840, round(100 * size[1])) and narrow[:2] == (350, height)
    assert wide[2] > narrow[2] >= 11.1
    assert all(panels == (1, 1) or len(axes) == panels[0] * panels[1] for axes in given)


def test_pictures_without_axes_keep_their_proportions_on_a_phone(shown, page):
    def draw(ax):
        figures.image_grid(torch.zeros(6, 1, 8, 8), 6, ax=ax)

    show(draw, size=(8.4, 1.4))
    narrow, wide = forms_of(shown[0].data)
    assert narrow == (350, 58, None) and wide == (840, 140, None)


def test_with_a_live_kernel_a_figure_is_drawn_once(shown, monkeypatch):
    monkeypatch.delenv("DIFFBOOK_PAGE", raising=False)
    drawn = []
    show(lambda ax: drawn.append(ax))
    assert len(drawn) == 1 and "<source" not in shown[0].data


@pytest.mark.parametrize("size", ["x-small", 7.9])
def test_a_text_that_a_phone_cannot_show_is_refused(shown, page, size):
    with pytest.raises(ValueError, match="below 8 points: 'tiny'"):
        show(lambda ax: ax.text(0, 0, "tiny", fontsize=size))
    show(lambda ax: ax.text(0, 0, "legible", fontsize=8))
    assert forms_of(shown[0].data)[0][2] == 11.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"caption": " "}, "caption is empty"),
        ({"name": "Two words"}, "lower case"),
        ({"name": 'x" onload="'}, "lower case"),
    ],
)
def test_wrong_figures_are_refused(shown, page, changes, message):
    for make in (show, move):
        with pytest.raises(ValueError, match=message):
            make(**changes)
    with pytest.raises(ValueError, match=message):
        figures.gallery(
            torch.zeros(1, 1, 2, 2), **({"name": "a", "alt": "a", "caption": "a"} | changes)
        )
    assert not shown


def test_a_gallery_shows_images_sharp_and_half_as_many_in_a_row_on_a_phone(shown):
    x = torch.stack([torch.full((1, 8, 8), value) for value in (-1.0, 0.0, 1.0, 0.0)])
    figures.gallery({"data <1>": x, "model": -x}, ncol=4, name="g", alt="squares", caption="See.")
    html = shown[0].data
    assert html.count("<picture>") == 2 and "data &lt;1&gt;</p>" in html
    assert re.findall('alt="([^"]+)"', html) == ["squares", "model, a part of the same figure"]
    narrow, wide = (pixels_of(tag) for tag in re.findall("<(?:source|img) [^>]+>", html)[:2])
    assert wide.shape[1] % 35 == 0 and wide.shape[1] >= 1600  # 4 images and 3 gaps
    assert wide.shape[0] * 35 == wide.shape[1] * 8
    assert narrow.shape[1] % 17 == 0 and narrow.shape[0] == narrow.shape[1]
    middle = wide.shape[0] // 2
    assert wide[middle, 0].tolist() == [0, 0, 0, 255]
    assert wide[middle, -1].tolist() == [129, 129, 129, 255]
    with pytest.raises(Refused, match="convert the levels"):
        figures.gallery(x.long(), name="g", alt="squares", caption="See.")


def test_save_writes_the_picture_that_it_shows_and_makes_the_folder(shown, tmp_path):
    figure, ax = plt.subplots(figsize=(2, 1))
    ax.imshow(np.zeros((4, 4)))
    ax.set_axis_off()
    path = tmp_path / "run" / "figures" / "samples.png"
    figures.save(figure, path, alt="a square")
    assert 'alt="a square"' in shown[0].data
    image = Image.open(path)
    assert image.format == "PNG"
    assert [file.name for file in path.parent.iterdir()] == ["samples.png"]
    written, seen = np.asarray(image.convert("RGBA")), pixels_of(shown[0].data)
    assert written.shape == seen.shape
    assert np.abs(written.astype(int) - seen)[..., 3].max() <= 26
    assert written[..., 3].min() == 0 and written[..., 3].max() == 255
    assert not plt.get_fignums()


def test_save_without_alternative_text_writes_nothing(shown, tmp_path):
    with pytest.raises(ValueError, match="alt is empty"):
        figures.save(plt.figure(), tmp_path / "figures" / "a.png", alt=" ")
    assert not list(tmp_path.iterdir()) and not shown


@pytest.mark.parametrize("alt", ["", "  "])
def test_a_figure_without_alternative_text_is_refused(shown, alt):
    for make in (show, move):
        with pytest.raises(ValueError, match="alt is empty"):
            make(alt=alt)


def visible(pixels: np.ndarray) -> np.ndarray:
    """Colours times opacity, and opacity."""
    values = pixels.astype(float)
    return np.concatenate([values[..., :3] * values[..., 3:] / 255, values[..., 3:]], -1)


def test_rounding_of_the_pixels_cannot_be_seen():
    with plt.rc_context(figures.STYLE):
        figure, ax = plt.subplots()
        ax.imshow(np.linspace(0, 1, 300).reshape(15, 20))
        ax.plot([0, 10], [0, 10], alpha=0.4)
        ax.fill_between([0, 18], 3, 9, alpha=0.3)
        ax.set(title="a title", xlabel="x", ylabel="y")
    before, after = rounding(figure)
    away = np.abs(visible(before) - visible(after)).max(-1)
    assert (away <= 8).mean() > 0.99 and away.max() <= 48
    assert away[before[..., 3] == 255].mean() <= 2
    ink = (before == [117, 117, 117, 255]).all(-1)
    assert ink.sum() > 100
    assert (after[ink] == before[ink]).all()
    plt.close(figure)


def rounding(figure) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of a figure before and after they are packed."""
    before = np.asarray(Image.open(io.BytesIO(picture.png(figure))).convert("RGBA"))
    return before, np.asarray(Image.open(io.BytesIO(picture.webp(before))).convert("RGBA"))


def test_every_colour_of_the_book_is_kept_exactly():
    figure, axes = plt.subplots(1, len(figures.COLOURS), figsize=(6, 1))
    for ax, colour in zip(axes, figures.COLOURS, strict=True):
        ax.set_axis_off()
        ax.fill_between([0, 1], 0, 1, color=colour)
    kept = {tuple(pixel) for pixel in rounding(figure)[1].reshape(-1, 4)}
    for colour in figures.COLOURS:
        assert (*(int(colour[i : i + 2], 16) for i in (1, 3, 5)), 255) in kept
    plt.close(figure)


def test_the_page_has_every_frame_with_its_own_text_and_one_visible(shown, page):
    move(start=1, fmt=".1f", label="slope <m>")
    html = shown[0].data
    images = re.findall("<img [^>]+>", html)
    assert [re.search('alt="([^"]+)"', tag).group(1) for tag in images] == [
        f"a line of slope {value}" for value in (1, 2, 5)
    ]
    assert [" hidden" in tag for tag in images] == [True, False, True]
    assert 'data-texts="1.0|2.0|5.0"' in html and "slope &lt;m&gt;" in html
    assert 'type="range"' in html and 'aria-valuetext="2.0"' in html and 'max="2"' in html
    assert not re.search(r"https?://|<link|src=\"(?!data:)", html)
    pixels = [pixels_of(tag) for tag in images]
    assert all(frame.shape == pixels[0].shape for frame in pixels)
    assert not np.array_equal(pixels[0], pixels[1])
    assert len(re.findall("<source ", html)) == 3 and 'id="fig-slope"' in html
    assert html.endswith("See it rise.</figcaption></figure>")


def test_a_text_for_all_frames_still_names_the_value(shown, page):
    move(values=torch.tensor([0.5, 1.0]), alt="a line")
    assert 'alt="a line (slope: 0.5)"' in shown[0].data


def test_the_live_face_draws_only_what_is_asked_for(shown, monkeypatch):
    monkeypatch.delenv("DIFFBOOK_PAGE", raising=False)
    drawn = []

    def draw(ax, value):
        drawn.append(value)
        line(ax, value)

    move(draw=draw)
    view, controls, below = shown[0].children
    assert "See it rise." in below.value
    slider = controls.children[1]
    assert drawn == [1] and "slope 1" in view.value
    slider.index = 2
    assert drawn == [1, 5] and "slope 5" in view.value and "hidden" not in view.value
    slider.index = 0
    assert drawn == [1, 5] and "slope 1" in view.value


def test_panels_are_given_as_a_list_of_axes(shown, page):
    move(draw=lambda axes, value: [ax.plot([0, value]) for ax in axes], panels=(1, 3))
    assert len(re.findall("<img ", shown[0].data)) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": [1]}, "two values or more"),
        ({"values": []}, "two values or more"),
        ({"start": 3}, "start among them"),
        ({"start": -1}, "start among them"),
        ({"values": [0.001, 0.002], "fmt": ".2f"}, "finer fmt"),
    ],
)
def test_wrong_moving_figures_are_refused(shown, page, changes, message):
    with pytest.raises(ValueError, match=message):
        move(**changes)


def test_a_too_heavy_moving_figure_is_refused(shown, page, monkeypatch):
    monkeypatch.setattr(frames, "LIMIT", 1000)
    with pytest.raises(ValueError, match="fewer values"):
        move()


def test_drawing_leaves_the_settings_of_matplotlib_alone(shown, page):
    before = dict(plt.rcParams)
    move()
    assert dict(plt.rcParams) == before
    assert not plt.get_fignums()


def test_image_grid_places_each_image_and_leaves_gaps_transparent():
    x = torch.stack([torch.full((1, 8, 8), value) for value in (-1.0, 0.0, 1.0, 3.0)])
    grid = figures.image_grid(x, ncol=3).axes[0].images[0].get_array()
    assert grid.shape == (17, 26, 4)
    assert grid[0, 0].tolist() == [0, 0, 0, 1]
    assert grid[0, 9].tolist() == [0.5, 0.5, 0.5, 1]
    assert grid[16, 0].tolist() == [1, 1, 1, 1]
    assert grid[0, 8, 3] == 0 and grid[16, 25, 3] == 0
    plt.close("all")


def test_image_grid_takes_colour_and_given_axes():
    figure, ax = plt.subplots()
    x = torch.zeros(2, 3, 4, 4)
    x[:, 0] = 1
    assert figures.image_grid(x, ncol=2, ax=ax) is figure
    assert ax.images[0].get_array()[0, 0].tolist() == [1, 0.5, 0.5, 1]
    plt.close(figure)
    with pytest.raises(ValueError, match=r"got \(2, 2, 4, 4\)"):
        figures.image_grid(x[:, :2])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_image_grid_refuses_integer_levels_that_it_would_clip(dtype):
    with pytest.raises(Refused, match=r"torch\.\w+; .*data\.to_unit\(x, 256\)"):
        figures.image_grid(torch.ones(2, 1, 4, 4, dtype=dtype))
    assert not plt.get_fignums()


def test_samples_are_shown_as_points_or_as_images():
    digits, points = data.load("digits"), data.load("mixture9")
    x = digits.batch(0, 0, 30).x
    grid = figures.samples(x, digits, 25).axes[0].images[0].get_array()
    assert grid.shape == (2 * 9 - 1, 20 * 9 - 1, 4)
    levels = figures.samples(data.to_levels(x, 17), digits, 25).axes[0].images[0].get_array()
    assert np.abs(levels - grid).max() < 1e-6
    panels = figures.samples(torch.zeros(10, 2), points).axes
    assert [ax.get_title() for ax in panels] == ["samples", "data"]
    with pytest.raises(Refused, match=r"\(3, 4\) are neither"):
        figures.samples(torch.zeros(2, 3, 4), digits)
    with pytest.raises(Refused, match="to_unit"):
        figures.samples(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), points)
    plt.close("all")


def test_scatter_shows_clouds_on_one_scale():
    clouds = {"a": torch.randn(50, 2), "b": 3 * torch.ones(1, 2), "c": torch.randn(5, 2)}
    figure = figures.scatter(clouds, ncol=2)
    panels = [ax for ax in figure.axes if ax.axison]
    assert [ax.get_title() for ax in panels] == ["a", "b", "c"]
    assert len({ax.get_xlim() + ax.get_ylim() for ax in panels}) == 1
    assert panels[0].get_xlim()[1] >= 3
    plt.close(figure)


def test_scatter_draws_into_given_axes():
    figure, axes = plt.subplots(1, 3)
    clouds = {"a": torch.randn(50, 2), "b": torch.randn(5, 2)}
    assert figures.scatter(clouds, axes=list(axes)) is figure
    assert [ax.get_title() for ax in axes if ax.axison] == ["a", "b"]
    with pytest.raises(ValueError, match="need as many axes, got 1"):
        figures.scatter(clouds, axes=list(axes[:1]))
    plt.close(figure)


@pytest.mark.parametrize("shape", [(7, 3, 2), (7, 3)])
def test_trajectories_draw_a_line_a_sample(shape):
    figure = figures.trajectories(torch.randn(shape), torch.linspace(0, 1, 7))
    assert len(figure.axes[0].lines) == 3
    plt.close(figure)


def test_trajectories_refuse_other_shapes():
    with pytest.raises(ValueError, match=r"\(7, 3, 5\)"):
        figures.trajectories(torch.randn(7, 3, 5))


def test_colours_carry_as_text_on_white_and_on_black():
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05

    for colour in figures.COLOURS:
        assert luminance("#ffffff") / luminance(colour) >= 4.5
        assert luminance(colour) / luminance("#000000") >= 4.5


def test_show_source_is_the_file_without_the_docstring(shown):
    figures.show_source(rng.generator, rng.Share)
    text = shown[0].data
    assert "diffbook_lib.rng.keyed.generator" in text and "diffbook_lib/rng/keyed.py" in text
    assert "```python\ndef generator(" in text and '"""' not in text
    assert "@dataclass(frozen=True)\nclass Share:\n    generator" in shown[1].data


def test_show_source_leaves_out_what_is_for_the_type_checker(shown):
    assert "# type: ignore" in inspect.getsource(primitives.mp_silu)
    figures.show_source(primitives.mp_silu)
    assert "type:" not in shown[0].data
    assert "ScaledSiLU.apply(x, 1 / SILU_RMS)\n" in shown[0].data


def test_show_source_can_keep_the_docstring(shown):
    figures.show_source(rng.generator, docstring=True)
    assert "Raises ValueError" in shown[0].data


def test_show_source_of_a_method_is_dedented(shown):
    figures.show_source(plt.Figure.savefig)
    assert "```python\ndef savefig(" in shown[0].data


def test_logarithmic_ticks_have_no_small_exponents(shown, page):
    drawn = []

    def draw(ax):
        drawn.append(ax)
        ax.loglog([1e-6, 1e4], [1, 1e3])

    show(draw)
    drawn[0].figure.canvas.draw()
    ticks = [tick.get_text() for tick in drawn[0].get_xticklabels()]
    assert "1e-06" in ticks and "0.01" in ticks and not any("^{" in tick for tick in ticks)
