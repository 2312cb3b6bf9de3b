"""The network of a run with one of its averages: tracked, or made of snapshots."""

from pathlib import Path

from torch import nn

from diffbook_lib import ema
from diffbook_lib.runs import cells, checkpoint, folder
from diffbook_lib.runs.workers import device, set_precision
from diffbook_lib.specs import RunSpec


def trained(run: str | Path, profile: str = "", at: int = 0) -> nn.Module:
    """The network of a trained run with its average `profile`, "" being the first, as it was
    `at` so many images, 0 being the newest checkpoint: built by the cells of its method's run
    notebook, on this process's device. Raises what `restore` raises."""
    run = Path(run)
    spec = folder.read_spec(run)
    (net,) = cells.defined(cells.execute(spec, "network"), "net")
    return restore(net.to(device()), run, spec, profile, at)


def restore(
    net: nn.Module, run: Path, spec: RunSpec, profile: str = "", at: int = 0
) -> nn.Module:
    """`net` with the weights that the average `profile` ("": the first) has at the
    newest checkpoint of a run, in its precision, for evaluation. A power profile that was
    not tracked, or that is asked for `at` an earlier number of images, is made of the run's
    snapshots. Raises CheckpointError without either."""
    found = checkpoint.newest(run / "checkpoints")
    wanted = ema.profile(profile or spec.ema[0])
    state = checkpoint.part(found, f"ema/{wanted.name}") if found and not at else {}
    if state:
        average = ema.EMA(net, wanted, spec.batch)
        average.load_state_dict(state)
        average.copy_to(net)
    elif found and isinstance(wanted, ema.Power):
        _reconstruct(net, run, wanted, at or found.samples)
    else:
        raise checkpoint.CheckpointError(
            f"{run} holds no checkpoint with the average {wanted.name}; train the run first"
        )
    return set_precision(net, spec.precision).eval()


def _reconstruct(net: nn.Module, run: Path, wanted: ema.Power, samples: int) -> None:
    try:
        ema.reconstruct(net, checkpoint.snapshots(run), wanted.sigma_rel, samples)
    except ValueError as error:
        raise checkpoint.CheckpointError(
            f"the snapshots of {run} do not give the average {wanted.name}: {error}"
        ) from None
