"""A miniature of the repository: two methods with run notebooks and presets, small enough for
tests. `counts` has integer data and state, `ladder` a sweep, a projection and two averages."""

import ctypes
import itertools
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

MINIATURES = Path(__file__).parent / "miniatures"
PARAMETERS = """\
preset: str = "tiny"
out: str = ""
processes: int = 1
"""
START = """\
from diffbook_lib import runs

spec = runs.collect("METHOD", globals())
run = runs.open_run(out, spec)
"""
TRAIN = "members = runs.train_members(spec, run, globals(), processes)\n"
RECORD = """\
samples = [drawn for member in members for drawn in runs.sample(member, processes)]
graded = runs.grade(samples, judge)
runs.finish(run, spec, members, samples, graded, processes=processes)
"""
COUNTS = {
    ("build", "data"): """\
from diffbook_lib import data

dataset = data.training(spec).as_levels()
""",
    ("build", "network"): """\
import torch
from torch import nn

from diffbook_lib import rng

with rng.seeded(spec.seed, "network"):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 64 * 17))
example = (torch.ones(1, 1, 8, 8),)
""",
    ("build",): """\
from torch.nn import functional as F

from diffbook_lib import runs


class Dual(nn.Module):
    \"\"\"The multiplier of a constraint, and the average of what it constrains.\"\"\"

    def __init__(self):
        super().__init__()
        self.register_buffer("value", torch.zeros(()))
        self.register_buffer("average", torch.zeros(()))

    def after_step(self, step, measures):
        self.value.add_(spec.dual_lr * (measures["dark"] - spec.threshold)).clamp_(min=0)
        self.average.lerp_(measures["dark"], 0.1)


dual = Dual()


def loss(net, batch, source):
    hidden = rng.uniform(batch.x.shape, source) < 0.5
    seen = torch.where(hidden, 0.0, batch.x / 16)
    logits = net(seen).view(len(seen), 64, 17).transpose(1, 2)
    each = F.cross_entropy(logits, batch.x.flatten(1), reduction="none")
    dark = (each * (batch.x.flatten(1) == 0)).sum(1) / 32
    return each.mean(1) + dual.value * dark, {"dark": dark, "hidden": hidden.flatten(1).sum(1)}


task = runs.Task(net, loss, dataset, state={"dual": dual})
""",
    ("sample",): """\
def draw(numbers):
    u = rng.image_uniform(spec.noise_seed, "levels", numbers, (64, 1))
    blank = torch.zeros(len(numbers), 1, 8, 8)
    steps = net(blank).view(-1, 64, 17).softmax(2).cumsum(2)
    return (u > steps).sum(2).clamp(max=16).view(-1, 1, 8, 8).to(torch.uint8), 1
""",
    (): """\
from diffbook_lib.metrics import Measurement


def judge(x):
    return [Measurement("Mean level", x.double().mean().item(), len(x), spec.noise_seed)]
""",
}
LADDER = {
    ("build", "data"): "from diffbook_lib import data\n\ndataset = data.training(spec)\n",
    ("build", "network"): """\
import torch

from diffbook_lib import rng
from diffbook_lib.nets.mlp import MLP

with rng.seeded(spec.seed, "network"):
    net = MLP(2, 2, spec.width, spec.depth)
example = (torch.ones(1, 2), torch.ones(1))
""",
    ("build",): """\
from diffbook_lib import diffusion, runs

levels = diffusion.LogNormal(**spec.arguments(diffusion.LogNormal))
edm = diffusion.EDM(spec.sigma_data, levels)


def loss(net, batch, source):
    drawn = edm.draw(batch.x, source)
    return edm.error(net, drawn), {"noisy": drawn.noisy.square().sum(1)}


@torch.no_grad()
def project(step, measures):
    net.stem.weight.div_(net.stem.weight.norm())


task = runs.Task(net, loss, dataset, after_step=project)
""",
    ("sample",): """\
from diffbook_lib import samplers


def draw(numbers, nfe):
    sigmas = samplers.karras_sigmas(nfe, 0.02, 20.0)
    start = sigmas[0].float() * rng.start_noise(spec.noise_seed, numbers, (2,))
    denoiser = samplers.CountCalls(edm.denoiser(net))
    return samplers.run(samplers.ddim(denoiser, start, sigmas)), denoiser.nfe
""",
    (): """\
from diffbook_lib.metrics import Measurement


def judge(x):
    return [Measurement("Spread", x.double().std().item(), len(x), spec.noise_seed)]
""",
}
METHODS = {"counts": COUNTS, "ladder": LADDER}
PRESETS = {
    "counts": {
        "tiny": "dataset: digits\nsteps: 6\nbatch: 12\nlr: 1.0e-2\ncheckpoint_every: 2\n"
        "log_every: 2\nsamples: 10\nsample_batch: 4\n",
        "long": "dataset: digits\nsteps: 300\nbatch: 12\nlr: 3.0e-3\ncheckpoint_every: 10\n"
        "log_every: 5\nsamples: 400\nsample_batch: 4\n",
    },
    "ladder": {
        "tiny": "dataset: mixture9\nsteps: 6\nbatch: 12\nlr: 1.0e-2\ncheckpoint_every: 2\n"
        "log_every: 2\nema: [power-0.1, classic-0.9]\nsamples: 10\nsample_batch: 4\n"
        "width: 8\ndepth: 1\n",
        "sweep": "dataset: mixture9\nsteps: 40\nbatch: 12\nlr: 1.0e-2\ncheckpoint_every: 5\n"
        "log_every: 5\nema: [power-0.1, classic-0.9]\nsnapshot_every: 20\nsamples: 40\n"
        "sample_batch: 4\ndepth: 1\ntable: {nfe: [3]}\n"
        "sweep: {seed: [0, 1, 2], width: [8, 16]}\n",
    },
}


def write(folder: Path) -> Path:
    """The run notebooks of both methods and their presets under `folder`."""
    for method, cells in METHODS.items():
        write_notebook(folder, method, cells)
        presets = folder / "nbs" / "presets" / method
        presets.mkdir(parents=True)
        for name, text in PRESETS[method].items():
            (presets / f"{name}.yaml").write_text(f"# The {name} one\npreset: {name}\n{text}")
    return folder


def write_notebook(folder: Path, method: str, middle: dict, train: str = TRAIN) -> None:
    """nbs/METHOD.ipynb with the cells `middle` between start and training."""
    cells = [
        cell(PARAMETERS, "parameters"),
        cell(START.replace("METHOD", method)),
        *(cell(source, *tags) for tags, source in middle.items()),
        cell(train),
        cell(RECORD),
    ]
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    (folder / "nbs").mkdir(exist_ok=True)
    (folder / "nbs" / f"{method}.ipynb").write_text(json.dumps(notebook))


def environment(root: Path) -> dict[str, str]:
    """What a process needs to run the miniatures in `root`."""
    library = Path(__file__).parents[1]
    return {
        **os.environ,
        "DIFFBOOK_ROOT": str(root),
        "PYTHONPATH": f"{MINIATURES}:{library}",
        "OMP_NUM_THREADS": "1",
    }


@contextmanager
def opened(root: Path) -> Iterator[Path]:
    """The miniatures in `root`, for this process and those that it starts."""
    from diffbook_lib import specs

    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(root).items():
            patch.setenv(name, value)
        patch.setattr(specs, "__path__", [*specs.__path__, str(MINIATURES / "specs")])
        yield write(root)


def code(root: Path, method: str) -> list[str]:
    """The source of every cell of a run notebook."""
    notebook = json.loads((root / "nbs" / f"{method}.ipynb").read_text())
    return ["".join(cell["source"]) for cell in notebook["cells"]]


def replace(root: Path, method: str, old: str, new: str) -> None:
    """Change a line of a run notebook's code."""
    path = root / "nbs" / f"{method}.ipynb"
    text, old, new = path.read_text(), *(json.dumps(part)[1:-1] for part in (old, new))
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new))


def execute(root: Path, method: str, names: dict, **parameters) -> dict:
    """The cells of a run notebook one after the other, as a kernel executes them; `names` are
    its globals."""
    for number, source in enumerate(code(root, method)):
        exec(source, names)
        if not number:
            names.update(parameters)
    return names


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["sklearn.datasets", "torch.utils.tensorboard", "accelerate", "diffbook_lib.runs.jobs"]
)
_numbers = itertools.count()


def start(root: Path, *command, log: Path | None = None, **extra: str) -> BaseProcess:
    """A process of its own session that has imported the library already. `command` is one of
    the command line, or "notebook", METHOD and parameters: its cells without Jupyter."""
    named = {**environment(root), **extra}
    words = [part if isinstance(part, dict) else str(part) for part in command]
    process = FORKS.Process(target=_run, args=(root, words, named, log or root / "log"))
    process.start()
    return process


def start_two(root: Path, *command) -> list[BaseProcess]:
    """Two processes of a stage, as torchrun would start them."""
    common = {
        "TORCHELASTIC_RUN_ID": f"{os.getpid()}-{next(_numbers)}",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",  # nobody listens there
    }
    return [
        start(root, *command, log=root / f"log-{rank}", RANK=rank, LOCAL_RANK=rank, **common)
        for rank in "01"
    ]


def finish(root: Path, *processes: BaseProcess, code: int = 0) -> str:
    """Wait for processes; what they said. All must end well, or, with another code, one of them
    with that: whoever waits for it ends as it can."""
    running = [*processes]
    while running:
        wait([process.sentinel for process in running])
        running = [process for process in running if process.is_alive()]
        if any(process.exitcode for process in processes):
            for process in running:  # it may wait for the one that failed
                process.kill()
    said = "".join(path.read_text() for path in sorted(root.glob("log*")))
    codes = {process.exitcode for process in processes}
    assert code in codes if code else codes == {0}, said
    return said


def kill(process: BaseProcess) -> None:
    """Kill a process with all of its session, at whatever it is."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has no session of its own yet
        process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it had come to its end"


def _run(root: Path, command: list, environment: dict[str, str], log: Path) -> None:
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # killed with the tests
    with log.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    os.environ.update(environment)
    os.chdir(root)
    import torch

    from diffbook_lib import specs
    from diffbook_lib.__main__ import main

    specs.__path__ = [*specs.__path__, str(MINIATURES / "specs")]
    torch.set_num_threads(1)
    if command[0] == "notebook":
        execute(root, command[1], {}, **command[2])
    else:
        main(command, prog_name="python -m diffbook_lib")


def cell(source: str, *tags: str) -> dict:
    """A code cell as it stands in a notebook's JSON."""
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": f"cell-{abs(hash(source)) % 10**8}",
        "metadata": {"tags": list(tags)},
        "outputs": [],
        "source": source.splitlines(keepends=True),
    }
