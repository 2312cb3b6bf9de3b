"""The tests of EDM2's network and loss have teeth: a formula changed on purpose makes one fail."""

import pytest
import test_edm2_loss
import test_edm2_network
import test_golden_edm2
from networks import same_numbers_every_time  # noqa: F401
from swaps import swap
from test_mutations import Mutation

from diffbook_lib import edm2
from diffbook_lib.edm2 import magnitudes
from diffbook_lib.nets.edm2 import EDM2UNet, Uncertainty, blocks, layers, passes, primitives, unet


def golden(name):
    return test_golden_edm2.check, (name, test_golden_edm2.FILE)


KEPT = (test_edm2_network.test_operations_keep_magnitudes_and_plain_ones_do_not, ())
WAYS_BACK = (test_edm2_network.test_the_other_ways_back_are_those_of_the_formulas, ())
NORMALISE = (
    test_edm2_network.test_normalise_is_its_formula_and_its_gradient_that_of_the_formula,
    (None, 1.0),
)
MUTATIONS = [
    Mutation(function, old, new, *check)
    for function, old, new, check in [
        (primitives.mp_sum, "math.hypot(1 - t, t)", "1", KEPT),
        (primitives.mp_sum, "alpha=t / norm", "alpha=(1 - t) / norm", golden("mp_sum")),
        (primitives.mp_cat, "math.hypot(1 - t, t)", "1", KEPT),
        (primitives.mp_cat, "scale * t / math.sqrt(n_b)", "scale * t / n_b", golden("mp_cat")),
        (primitives.mp_silu, "1 / SILU_RMS", "1", KEPT),
        (primitives.unit_rows, "math.sqrt(weight[0].numel())", "weight[0].numel()", KEPT),
        (primitives.pixel_norm_root, "+ 1e-8", "+ 1e-4", golden("pixel_norm_seed")),
        (passes.Normalize.forward, "(eps + rms)\n", "rms\n", golden("normalize_tiny")),
        (passes.Normalize.backward, "value=-1", "value=1", NORMALISE),
        (passes.Normalize.backward, "mul_(factor", "div_(factor", NORMALISE),
        (passes.ScaledSiLU.backward, ".mul_(ctx.scale)", "", WAYS_BACK),
        (passes.ScaledCat.backward, "scale_a * a", "scale_b * a", WAYS_BACK),
        (
            *(layers.project, "isinstance(module, Projected)"),
            *("isinstance(module, Normalised)",),
            (test_edm2_network.test_projection_moves_stored_weights_of_projected_layers_only, ()),
        ),
        (
            blocks.Attention.forward,
            "reshape(split), 3)",
            "reshape(split), 4)",
            golden("block_dec_up"),
        ),
        (blocks.Block.forward, "factor = 1 +", "factor =", golden("block_enc_keep")),
        (
            *(
                blocks.GroupNormBlock.branches,
                "act(group_norm(h) * factor)",
                "act(group_norm(h * factor))",
            ),
            golden("seed_unetE_tiny"),
        ),
        (
            blocks.PixelNormBlock.branches,
            "if not self.decodes",
            "if self.decodes",
            golden("block_enc_keep"),
        ),
        (
            unet.Embedding.forward,
            "layer(self.parts.activation(h) if i else h)",
            "layer(h)",
            golden("seed_unetE_tiny"),
        ),
        (unet.Embedding.scaled_one_hot, "* math.sqrt(self.classes)", "", golden("precond_tiny")),
        (EDM2UNet.forward, "torch.ones_like", "torch.zeros_like", golden("precond_tiny")),
        (
            *(Uncertainty.after_step, "project(self)", "pass"),
            (test_edm2_loss.test_uncertainty_of_every_configuration, ("E", "seed")),
        ),
        (edm2.uncertain, "error / u.exp()", "error * u.exp()", golden("edm2_loss")),
        (
            *(edm2.EDM2Loss.error, "self.edm.c_noise(draw.sigma)", "draw.sigma"),
            (test_edm2_loss.test_each_image_is_weighed_by_what_is_expected_at_its_level, ()),
        ),
        (
            *(magnitudes.relative_steps, "/ weight.norm()", ""),
            (test_edm2_network.test_relative_steps_are_lengths_over_lengths, ()),
        ),
    ]
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_changed_formula_is_noticed(mutation, monkeypatch):
    mutation.check(*mutation.arguments)
    swap(monkeypatch, mutation.function, mutation.old, mutation.new)
    with pytest.raises((AssertionError, RuntimeError)):
        mutation.check(*mutation.arguments)
