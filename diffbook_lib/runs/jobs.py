"""Starting runs: papermill on a method's notebook, single stages of a run folder, Slurm."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffbook_lib.errors import Stopped
from diffbook_lib.runs import cells, estimate, presets, records
from diffbook_lib.runs import folder as folders
from diffbook_lib.runs.launch import RunFailed, end_with_parent
from diffbook_lib.runs.presets import notebook_path, root
from diffbook_lib.runs.sampling import draw_missing
from diffbook_lib.runs.sweeps import members
from diffbook_lib.runs.training import train
from diffbook_lib.runs.workers import leave
from diffbook_lib.specs import RunSpec, SpecError

PARTIAL = "notebook.partial.ipynb"  # while papermill writes it


@dataclass(frozen=True)
class Plan:
    """A run whose every value has been checked."""

    spec: RunSpec
    folder: Path
    notebook: Path
    parameters: Mapping[str, Any]  # what papermill is given
    processes: int


def prepare(
    method: str,
    preset: str,
    changes: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    processes: int = 1,
) -> Plan:
    """Check everything about a run without starting or writing anything.

    Raises SpecError for an unknown method, preset or parameter and for a value that is not
    allowed, SpecMismatch or FolderError if the folder cannot take this run.
    """
    changes = dict(changes or {})
    spec = presets.resolve(method, preset, changes)
    folder = Path(out).resolve() if out else folders.default_folder(spec)
    for at in spec.members():
        batch, accumulate = spec.member(at).batch, spec.member(at).accumulate
        if processes < 1 or batch % (processes * accumulate):
            raise SpecError(
                f"processes is {processes}; processes times accumulate ({accumulate}) must "
                f"divide the batch of {batch} examples"
            )
    folders.check(folder, spec)
    _check_networks(spec)
    parameters = {
        "preset": preset,
        **changes,
        "out": str(folder),
        "processes": processes,
    }
    if spec.path:
        parameters["path"] = spec.path  # from the root: the kernel works elsewhere
    return Plan(spec, folder, notebook_path(method), parameters, processes)


def run(
    method: str,
    preset: str,
    changes: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    processes: int = 1,
    where: str = "local",
    **slurm: Any,
) -> Path:
    """Run a preset, or continue it where it stopped; returns its folder.

    `where` = "slurm" submits the run, with the options of `submit`, and returns at once. Raises
    what `prepare` raises and what the data set raises that cannot be had, before anything starts,
    and RunFailed if a cell of the notebook fails.
    """
    if where not in ("local", "slurm"):
        raise SpecError(f"where is {where!r}; it must be 'local' or 'slurm'")
    plan = prepare(method, preset, changes, out, processes)
    if records.is_complete(plan.folder, plan.spec):
        _name_notebook(plan.folder)  # of a start that was killed after the record
        print(f"complete: {plan.folder / 'record.json'}")
        return plan.folder
    _check_data(plan.spec)
    folders.open_run(plan.folder, plan.spec)
    if where == "slurm":
        folders.unlock(plan.folder)
        job = submit(
            Submission(
                method, preset, dict(changes or {}), str(plan.folder), processes
            ),
            **slurm,
        )
        print(f"submitted as job {job.job_id}; output in {job.paths.stdout}")
        return plan.folder
    _execute(plan)
    if not records.is_complete(plan.folder, plan.spec):
        raise RunFailed(
            f"{plan.notebook.name} came to its end but wrote no record.json"
        )
    print(f"complete: {plan.folder / 'record.json'}")
    return plan.folder


def _check_networks(spec: RunSpec) -> None:
    """Build each network once without its numbers, so that what does not fit is said at once."""
    same = {"seed": 0, "noise_seed": 0}
    members = [spec.member(at).model_copy(update=same) for at in spec.members()]
    for member in {one.model_dump_json(): one for one in members}.values():
        estimate.network(member)


def _check_data(spec: RunSpec) -> None:
    """Load the data of a run once, so that what is missing or damaged is said before it starts."""
    own = {(m.dataset, m.path): m for m in map(spec.member, spec.members())}
    for member in own.values():
        cells.execute(member, "data")


def _execute(plan: Plan) -> None:
    """Papermill on the run notebook, its output shown as it comes.

    The executed notebook takes its final name when papermill ends.
    """
    try:
        from diffbook_lib.runs import kernels
    except ImportError as error:
        raise RunFailed(
            f"{error}: running a notebook needs papermill, pip install 'diffbook_lib[notebook]'; "
            "`train` and `sample` work without"
        ) from None
    # parameters that the notebook's cell does not name are meant: the specification knows them
    logging.getLogger("papermill").setLevel(logging.ERROR)
    os.environ["DIFFBOOK_TEXT_BAR"] = (
        "1"  # for the kernel: a widget would not show in a terminal
    )
    folders.unlock(plan.folder)  # the kernel locks it
    try:
        with _stoppable(plan.folder):
            kernels.execute(
                plan.notebook, plan.folder / PARTIAL, plan.parameters, root()
            )
    finally:
        _name_notebook(plan.folder)


@contextmanager
def _stoppable(folder: Path) -> Iterator[None]:
    """Ctrl-C becomes a sentence that says how far the run has come."""
    try:
        yield
    except KeyboardInterrupt:
        saved = [*folder.rglob("checkpoints/[0-9]*.safetensors")]
        if not saved:
            raise Stopped("stopped; the same command starts anew") from None
        newest = max(saved, key=lambda file: file.stat().st_mtime_ns)
        spec = folders.read_spec(newest.parents[1])
        raise Stopped(
            f"stopped at step {int(newest.stem) // spec.batch} of {spec.steps}; the same command "
            "continues"
        ) from None


def _name_notebook(folder: Path) -> None:
    """Give the executed notebook its final name, if one was begun."""
    with suppress(FileNotFoundError):
        (folder / PARTIAL).replace(folder / "notebook.ipynb")


def train_folder(folder: str | Path) -> None:
    """Train the run of a folder that holds spec.json, every member of it; under torchrun, one of
    its processes. Stopped by Ctrl-C, it raises Stopped."""
    folder = Path(folder).resolve()
    with _stoppable(folder):
        for member in members(_claimed(folder), folder, None, "build"):
            train(member.folder, member.spec, member.task)
    leave()


def sample_folder(folder: str | Path) -> None:
    """Draw the samples of a trained run that its folder lacks; under torchrun, those that fall
    to this process. Stopped by Ctrl-C, it raises Stopped."""
    folder = Path(folder).resolve()
    with _stoppable(folder):
        for member in members(_claimed(folder), folder):
            draw_missing(member)
    leave()


def _claimed(folder: Path) -> RunSpec:
    """The specification of a run folder, locked by the first of the processes."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
    spec = folders.read_spec(folder)
    folders.lock(folder)
    return spec


@dataclass
class Submission:
    """A run as a job for submitit; asked to stop at its time limit, it queues itself again."""

    method: str
    preset: str
    changes: dict[str, Any] = field(default_factory=dict)
    out: str = ""
    processes: int = 1

    def __call__(self) -> str:
        return str(
            run(self.method, self.preset, self.changes, self.out, self.processes)
        )

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
        raise RunFailed(
            "submitting needs submitit, pip install 'diffbook_lib[slurm]'"
        ) from None
    executor = submitit.AutoExecutor(
        Path(submission.out) / "slurm" / "%j",
        cluster=cluster,
        slurm_max_num_timeout=100,
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
