"""What the prose inserts: texts by name, ratios in words, sentences that follow the figures."""

import pytest
from IPython.testing.globalipapp import start_ipython

from diffbook_lib.checks import CheckFailed
from diffbook_lib.prose import choose, glue, spread, told, words


@pytest.mark.parametrize(
    ("value", "word"), [(0.5, "half"), (0.14, "a seventh"), (1.93, "twice"), (0.34, "a third")]
)
def test_a_ratio_in_words(value, word):
    assert words(value) == word


def test_a_ratio_without_a_word_fails():
    with pytest.raises(CheckFailed, match=r"1\.4 has no word within 10%; the nearest is"):
        words(1.4)
    with pytest.raises(CheckFailed, match="within 1%"):
        words(0.48, near=0.01)


def test_the_sentence_that_holds_is_chosen():
    assert choose({"A is ahead": 1 < 2, "B is ahead": 2 < 1}) == "A is ahead"


@pytest.mark.parametrize("holds", [(True, True), (False, False)])
def test_not_one_sentence_or_several(holds):
    with pytest.raises(CheckFailed, match="exactly one"):
        choose(dict(zip(("first", "second"), holds, strict=True)))


def test_seeds_have_a_spread():
    assert spread([1.0, 2.0, 3.0], ".2f") == "2.00 ± 1.00"
    with pytest.raises(ValueError, match="two values"):
        spread([1.0])


def test_only_texts_are_inserted():
    with pytest.raises(TypeError, match="seconds is 3"):
        glue(seconds=3)


def test_a_glued_text_is_kept_under_its_name(monkeypatch):
    kept = []
    monkeypatch.setattr("myst_nb.ext.glue.ipy_display", lambda *a, **k: kept.append((a, k)))
    start_ipython()
    glue(seconds="12 s")
    ((data,), settings) = kept[0]
    assert data == {"application/papermill.record/text/plain": "'12 s'"}
    assert settings["metadata"]["scrapbook"]["name"] == "seconds"


@pytest.mark.parametrize(
    ("outcomes", "sentence"),
    [
        ({"error": "first", "bits": "first"}, "C is better by the error and the bits"),
        (
            {"error": "first", "loss": "first", "bits": "first"},
            "C is better by the error, the loss and the bits",
        ),
        (
            {"error": "second", "loss": "open"},
            "E is better by the error; the loss does not tell them apart",
        ),
        ({"error": "open", "bits": "open"}, "the error and the bits do not tell them apart"),
        (
            {"error": "first", "bits": "second"},
            "C is better by the error; E is better by the bits",
        ),
    ],
)
def test_outcomes_are_told(outcomes, sentence):
    assert told("C", "E", outcomes) == sentence
