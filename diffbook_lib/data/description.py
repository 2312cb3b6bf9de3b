"""What is known of a data set before it is loaded."""

from dataclasses import dataclass

from diffbook_lib.data.batches import Kind


@dataclass(frozen=True)
class Description:
    """A data set in numbers: what networks and estimates need of it.

    kind: points, images, text or sound.
    shape: of one example.
    levels: how many values a number of an example can take; None for continuous ones.
    classes: the names of the classes where they are fixed, else ().
    class_count: how many classes the published data have, 0 without labels; a part of the
        data may hold fewer.
    splits: its parts, such as ("train", "test").
    discrete: whether batches hold int64 levels instead of values in [-1, 1].
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    levels: int | None
    classes: tuple[str, ...]
    class_count: int
    splits: tuple[str, ...]

    @property
    def discrete(self) -> bool:
        return self.kind == "text"
