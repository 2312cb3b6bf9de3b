"""A miniature method: integer data, a multiplier and a table of losses as state, measures."""

from pydantic import Field

from diffbook_lib.specs.base import RunSpec


class Spec(RunSpec):
    """Guess hidden pixels of the digits under a constraint on one measure."""

    threshold: float = Field(2.5, description="largest loss of dark pixels, in nats")
    dual_lr: float = Field(0.5, gt=0, description="step of the multiplier")
