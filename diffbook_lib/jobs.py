"""Starting runs: papermill on a method's notebook, torchrun, Slurm.

A run is always `nbs/<method>.ipynb` executed with a preset. Its cells tagged "build" make the data
set, the network and the loss, and `train_folder` executes just those, so that training processes
without Jupyter build the same things from the same lines.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffbook_lib import presets, records
from diffbook_lib.presets import PresetError, RunSpec, notebook_path, root

__all__ = [
    "Plan",
    "RunFailed",
    "Submission",
    "check_data",
    "notebook_path",
    "prepare",
    "root",
    "run",
    "run_folder",
    "submit",
    "torchrun",
    "train_folder",
]


class RunFailed(RuntimeError):
    """A run was started and did not reach its end."""


@dataclass(frozen=True)
class Plan:
    """A run whose every value has been checked."""

    spec: RunSpec
    folder: Path
    notebook: Path
    parameters: Mapping[str, Any]  # what papermill is given
    processes: int


def run_folder(method: str, preset: str, out: str | Path | None = None) -> Path:
    """The folder of a run: `out`, or runs/<method>-<preset> in the repository."""
    presets.path(method, preset)
    return Path(out).resolve() if out else root() / "runs" / f"{method}-{preset}"


def prepare(
    method: str,
    preset: str,
    overrides: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    processes: int = 1,
) -> Plan:
    """Check everything about a run without starting or writing anything.

    Raises PresetError for an unknown method, preset or parameter and for a value that is not
    allowed, SpecMismatch or RecordError if the folder cannot take this run.
    """
    folder = run_folder(method, preset, out)
    overrides = dict(overrides or {})
    for name in presets.EXECUTION:
        if name in overrides:
            raise PresetError(f"{name} is no parameter of the run; use the option --{name}")
    spec = presets.resolve(method, preset, overrides)
    if spec.preset != preset:
        raise PresetError(f"preset is {spec.preset!r}; it names the preset and stays {preset!r}")
    if processes < 1 or spec.batch % (processes * spec.accumulate):
        raise PresetError(
            f"processes is {processes}; processes times accumulate ({spec.accumulate}) must "
            f"divide the batch of {spec.batch} samples"
        )
    records.check_run(folder, spec)
    notebook = notebook_path(method)
    parameters = {
        **presets.read(method, preset),
        **overrides,
        "out": str(folder),
        "processes": processes,
    }
    presets.check_parameters(notebook, parameters)
    return Plan(spec, folder, notebook, parameters, processes)


def check_data(spec: RunSpec) -> None:
    """Raise ValueError unless the data of a run can be had and fill a batch."""
    size = presets.build(spec, "data")["dataset"].size
    if spec.batch > size:
        raise PresetError(
            f"batch is {spec.batch}, but {spec.dataset} has {size} samples; it must be at most that"
        )


def run(
    method: str,
    preset: str,
    overrides: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    processes: int = 1,
    where: str = "local",
    **slurm: Any,
) -> Path:
    """Run a preset, or continue it where it stopped; returns its folder.

    `where` = "slurm" submits the run, with the options of `submit`, and returns at once. Raises
    what `prepare` and `check_data` raise, before anything starts, and RunFailed if a cell of the
    notebook fails.
    """
    if where not in ("local", "slurm"):
        raise PresetError(f"where is {where!r}; it must be 'local' or 'slurm'")
    plan = prepare(method, preset, overrides, out, processes)
    if records.is_complete(plan.folder, plan.spec):
        print(f"complete: {plan.folder / 'record.json'}")
        return plan.folder
    check_data(plan.spec)
    records.start_run(plan.folder, plan.spec)
    if where == "slurm":
        job = submit(
            Submission(method, preset, dict(overrides or {}), str(plan.folder), processes), **slurm
        )
        print(f"submitted as job {job.job_id}; output in {job.paths.stdout}")
        return plan.folder
    _execute(plan)
    if not records.is_complete(plan.folder, plan.spec):
        raise RunFailed(f"{plan.notebook.name} came to its end but wrote no record.json")
    print(f"complete: {plan.folder / 'record.json'}")
    return plan.folder


def _execute(plan: Plan) -> None:
    """Papermill on the run notebook, its output shown as it comes.

    The executed notebook takes its final name when papermill ends, so that a run killed while it
    was being saved leaves no half notebook under that name.
    """
    try:
        import papermill
        from nbclient.exceptions import DeadKernelError
    except ImportError as error:
        raise RunFailed(
            f"{error}: running a notebook needs papermill, pip install 'diffbook_lib[notebook]'; "
            "`train` works without"
        ) from None
    partial = plan.folder / "notebook.partial.ipynb"
    os.environ["DIFFBOOK_TEXT_BAR"] = "1"  # for the kernel: a widget would not show in a terminal
    try:
        papermill.execute_notebook(
            plan.notebook,
            partial,
            parameters=dict(plan.parameters),
            kernel_name="python3",
            language="python",
            cwd=root(),
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
        )
    except papermill.PapermillExecutionError as error:
        raise RunFailed(
            f"cell {error.exec_count} of {plan.notebook.name} failed with "
            f"{error.ename}: {error.evalue}\nexecuted up to there: {plan.folder / 'notebook.ipynb'}"
        ) from None
    except DeadKernelError:
        raise RunFailed(
            f"the kernel of {plan.notebook.name} died, perhaps for want of memory; the same "
            "command continues from the last checkpoint"
        ) from None
    finally:
        if partial.exists():
            partial.replace(plan.folder / "notebook.ipynb")


def train_folder(folder: str | Path) -> None:
    """Train the run of a folder that holds spec.json; under torchrun, one of its processes."""
    from diffbook_lib import train

    spec = records.read_spec(folder)
    made = presets.build(spec)
    missing = [name for name in ("net", "loss", "dataset") if name not in made]
    if missing:
        raise PresetError(
            f"the build cells of {notebook_path(spec.method).name} define no {', '.join(missing)}"
        )
    events = train.train(
        made["net"],
        made["loss"],
        made["dataset"],
        spec,
        Path(folder),
        state=made.get("state"),
    )
    train.watch(events, spec)


def torchrun(folder: str | Path, processes: int) -> None:
    """Train the run of a folder with several processes, their output shown as it comes.

    RunFailed if one of them fails; all of them end with this process.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(processes), "-m", "diffbook_lib", "train", str(folder)]
    shown = ""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=root(),
        pass_fds=records.lock_descriptors(Path(folder)),
    ) as process:
        assert process.stdout
        try:
            while chunk := os.read(process.stdout.fileno(), 4096):
                text = chunk.decode(errors="replace")
                shown = (shown + text)[-20_000:]
                sys.stdout.write(text)
                sys.stdout.flush()
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        said = re.split(r"^[WE]\d{4} .*torch/distributed", shown, maxsplit=1, flags=re.MULTILINE)[0]
        raise RunFailed(f"training with {processes} processes in {folder} failed:\n{said[-2000:]}")


@dataclass
class Submission:
    """A run as a job for submitit; asked to stop at its time limit, it queues itself again."""

    method: str
    preset: str
    overrides: dict[str, Any] = field(default_factory=dict)
    out: str = ""
    processes: int = 1

    def __call__(self) -> str:
        return str(run(self.method, self.preset, self.overrides, self.out, self.processes))

    def checkpoint(self) -> Any:
        """Called on the signal before the time limit: the same run, continued in a new job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(
    submission: Submission,
    cluster: str = "slurm",
    *,
    partition: str | None = None,
    minutes: int = 60,
    gpus: int = 0,
) -> Any:
    """Submit a run through submitit; returns its job. Logs go to slurm/ in the run folder.

    Tested with submitit's local executor, not on a Slurm cluster.
    """
    try:
        import submitit
    except ImportError:
        raise RunFailed("submitting needs submitit, pip install 'diffbook_lib[slurm]'") from None
    executor = submitit.AutoExecutor(
        Path(submission.out) / "slurm" / "%j", cluster=cluster, slurm_max_num_timeout=100
    )
    executor.update_parameters(
        name=f"{submission.method}-{submission.preset}",
        timeout_min=minutes,
        cpus_per_task=submission.processes,
        gpus_per_node=gpus,
        slurm_signal_delay_s=120,
        **({"slurm_partition": partition} if partition else {}),
    )
    return executor.submit(submission)
