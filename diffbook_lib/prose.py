"""Numbers and verdicts in the prose of a page: inserted from what ran, never typed."""

from collections.abc import Mapping, Sequence

from diffbook_lib.checks import CheckFailed
from diffbook_lib.figures import spread_of

WORDS = {
    0.01: "a hundredth",
    0.05: "a twentieth",
    0.1: "a tenth",
    1 / 9: "a ninth",
    0.125: "an eighth",
    1 / 7: "a seventh",
    1 / 6: "a sixth",
    0.2: "a fifth",
    0.25: "a quarter",
    1 / 3: "a third",
    0.4: "two fifths",
    0.5: "half",
    0.6: "three fifths",
    2 / 3: "two thirds",
    0.75: "three quarters",
    0.9: "nine tenths",
    2: "twice",
    3: "three times",
    4: "four times",
    5: "five times",
    6: "six times",
    7: "seven times",
    8: "eight times",
    9: "nine times",
    10: "ten times",
    20: "twenty times",
    50: "fifty times",
    100: "a hundred times",
    1000: "a thousand times",
}


def glue(**texts: str) -> None:
    """Names texts that the prose of the page inserts with {glue:text}`name`.

    Raises TypeError for what is not a text: how a number is rounded is decided where it
    is measured.
    """
    from myst_nb import glue as keep

    for name, text in texts.items():
        if not isinstance(text, str):
            raise TypeError(
                f'{name} is {text!r}, which is no text; write it out: f"{{value:.2f}}"'
            )
        keep(name, text, display=False)


def words(value: float, near: float = 0.1) -> str:
    """The ratio in words, such as "a third" or "twice".

    Raises CheckFailed where no word lies within `near` of it, relative to the word.
    """
    closest = min(WORDS, key=lambda known: abs(value / known - 1))
    if abs(value / closest - 1) > near:
        raise CheckFailed(
            f"{value:.4g} has no word within {near:.0%}; the nearest is "
            f"{WORDS[closest]!r}, {closest:.4g}"
        )
    return WORDS[closest]


def choose(sentences: Mapping[str, object]) -> str:
    """The one sentence whose condition holds, of {sentence: condition}.

    Raises CheckFailed unless exactly one does.
    """
    true = [sentence for sentence, holds in sentences.items() if bool(holds)]
    if len(true) != 1:
        raise CheckFailed(
            f"exactly one of these sentences must hold, but {len(true)} do: "
            f"{true or list(sentences)}"
        )
    return true[0]


def spread(values: Sequence[float], fmt: str = ".3g") -> str:
    """Mean and standard deviation (n - 1) of the seeds' values: "24.2 ± 1.9".

    Raises ValueError for fewer than two values.
    """
    mean, std = spread_of(values)
    return f"{mean:{fmt}} ± {std:{fmt}}"


def told(first: str, second: str, outcomes: Mapping[str, str]) -> str:
    """What several measures say of two sides, in words.

    outcomes: the outcome by measure, as runs.apart names it. Such as "C is better by the
    distance; the share of sure digits does not tell them apart".
    """
    by: dict[str, list[str]] = {"first": [], "second": [], "open": []}
    for measure, outcome in outcomes.items():
        by[outcome].append(f"the {measure}")
    parts = [
        f"{side} is better by {_joined(by[won])}"
        for won, side in (("first", first), ("second", second))
        if by[won]
    ]
    if by["open"]:
        verb = "does" if len(by["open"]) == 1 else "do"
        parts.append(f"{_joined(by['open'])} {verb} not tell them apart")
    return "; ".join(parts)


def _joined(names: Sequence[str]) -> str:
    """ "the error, the distance and the bits"."""
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last
