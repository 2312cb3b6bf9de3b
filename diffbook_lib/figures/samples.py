"""What a model has drawn, beside its data where that can be seen."""

from matplotlib.figure import Figure
from torch import Tensor

from diffbook_lib.data import Dataset, to_unit
from diffbook_lib.errors import Refused
from diffbook_lib.figures.plots import image_grid, scatter


def samples(x: Tensor, dataset: Dataset, count: int = 100) -> Figure:
    """A picture of samples x (n, *shape) of a model of `dataset`: points of the plane beside as
    many of the data, or the first `count` images in rows of twenty.

    Images may be integer levels of the data set. Raises Refused for what is neither.
    """
    if x.shape[1:] == (2,):
        real = dataset.batch(0, 0, len(x)).x
        return scatter({"samples": x, "data": real}, ncol=2)
    if x.ndim != 4:
        raise Refused(
            f"samples of the shape {tuple(x.shape[1:])} are neither points of the plane nor images"
        )
    images, levels = x[:count], getattr(dataset, "levels", None)
    if levels is not None and not images.is_floating_point():
        images = to_unit(images, levels)
    return image_grid(images, 20)
