"""The command line, `python -m diffbook_lib`: a thin face over papermill and the run notebooks."""

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from diffbook_lib import specs
from diffbook_lib.errors import DiffbookError, Refused, Stopped
from diffbook_lib.runs import presets

UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]"
)


def say(text: object, error: bool = False) -> None:
    """Print without what steers a terminal: a record or a file name may come from others."""
    click.echo(UNSEEN.sub("", str(text)), err=error)


class Commands(click.Group):
    """Turns the library's own errors into one message: exit 2 if refused, 1 if a run failed,
    130 if its user stopped it. Anything else is a defect and shows its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Stopped as stop:
            say(f"\n{stop}", error=True)
            ctx.exit(130)
        except DiffbookError as error:
            say(f"error: {error}", error=True)
            ctx.exit(2 if isinstance(error, Refused) else 1)


def value(text: str) -> Any:
    """The value of a parameter given as text: number, true, false, null, [list], {mapping}, else
    text."""
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    words = {"true": True, "false": False, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    if not text.startswith(("[", "{")):
        return text
    import yaml

    try:
        return _numbers(specs.plain_yaml(text))
    except yaml.YAMLError:
        raise Refused(
            f"{text!r} is no list or mapping; write for example '[1, 2]' or '{{seed: [0, 1]}}'"
        ) from None


def _numbers(item: Any) -> Any:
    """A list or mapping from YAML in which 1e-3 is a number, as it is outside of one."""
    if isinstance(item, list):
        return [_numbers(part) for part in item]
    if isinstance(item, dict):
        return {name: _numbers(part) for name, part in item.items()}
    return value(item) if isinstance(item, str) else item


def preset_arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    """METHOD PRESET [-p NAME VALUE]…"""
    option = click.option(
        "-p",
        "--parameter",
        "parameters",
        nargs=2,
        multiple=True,
        metavar="NAME VALUE",
        help="Set a parameter of the run; 1e-3 is a number here. May be repeated.",
    )
    return click.argument("method")(click.argument("preset")(option(command)))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="diffbook_lib")
def main() -> None:
    """Diffusion models, chapter by chapter: list, estimate, run and compare."""


@main.command("presets")
@click.argument("method", required=False)
def presets_command(method: str | None) -> None:
    """What can be run, one line each; for one METHOD its parameters too."""
    for chosen in [method] if method else specs.methods():
        for name in presets.names(chosen):
            say(f"{chosen:<12} {name:<12} {presets.summary(chosen, name)}")
    if method:
        say("\nparameters, with their defaults:")
        for name, field in specs.find(method).model_fields.items():
            default = "(none)" if field.is_required() else repr(field.default)
            say(f"  {name:<18} {default:<18} {field.description}")


@main.command()
@preset_arguments
@click.option(
    "--gpu", default="H100", show_default=True, help="Card the time is stated for."
)
@click.option(
    "--utilisation",
    default=0.3,
    show_default=True,
    help="Share of the card's peak reached.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def estimate(
    method: str,
    preset: str,
    parameters: list[tuple[str, str]],
    gpu: str,
    utilisation: float,
    as_json: bool,
) -> None:
    """Parameters, FLOPs, memory and GPU hours of a run; starts nothing."""
    from diffbook_lib.runs.estimate import estimate

    changes = {name: value(text) for name, text in parameters}
    found = estimate(method, preset, changes, gpu, utilisation)
    say(json.dumps(found.as_dict(), indent=1) if as_json else found)


@main.command()
@preset_arguments
@click.option(
    "--out",
    help="Run folder.  [default: runs/METHOD-PRESET, and a short hash of what -p changes]",
)
@click.option(
    "--processes", default=1, show_default=True, help="Training processes (torchrun)."
)
@click.option(
    "--prepare", is_flag=True, help="Only write DIR/spec.json, for `train DIR`."
)
@click.option(
    "--where",
    type=click.Choice(["local", "slurm"]),
    default="local",
    show_default=True,
    help="slurm: submit through submitit, requeued at the time limit. Tested with submitit's "
    "local executor only, not on a cluster.",
)
@click.option("--partition", help="slurm: partition.")
@click.option("--minutes", default=60, show_default=True, help="slurm: time limit.")
@click.option("--gpus", default=0, show_default=True, help="slurm: GPUs of the job.")
def run(
    method: str,
    preset: str,
    parameters: list[tuple[str, str]],
    out: str | None,
    processes: int,
    prepare: bool,
    where: str,
    **slurm: Any,
) -> None:
    """Run a preset: papermill on nbs/METHOD.ipynb. The same command again continues."""
    from diffbook_lib.runs import folder, jobs

    changes = {name: value(text) for name, text in parameters}
    if out is not None and not out.strip():
        raise Refused("--out is empty; name a folder, or leave the option out")
    if prepare:
        plan = jobs.prepare(method, preset, changes, out, processes)
        say(folder.open_run(plan.folder, plan.spec) / "spec.json")
    else:
        jobs.run(method, preset, changes, out, processes, where, **slurm)


@main.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def train(folder: Path) -> None:
    """The training process alone: what torchrun and Slurm start. DIR holds spec.json."""
    from diffbook_lib.runs import jobs

    jobs.train_folder(folder)


@main.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def sample(folder: Path) -> None:
    """The sampling process alone: draws what the trained run in DIR lacks."""
    from diffbook_lib.runs import jobs

    jobs.sample_folder(folder)


@main.command()
@click.argument("method", required=False)
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Every figure, not the best three of each.",
)
@click.option(
    "--keep", metavar="DIR", help="Copy the record of the run in DIR to results/."
)
def results(method: str | None, everything: bool, keep: str | None) -> None:
    """The table of recorded runs beside the published figures."""
    from diffbook_lib.runs import results

    if keep:
        say(results.keep(keep))
        return
    for chosen in [method] if method else specs.methods():
        specs.find(chosen)
        say(results.table(chosen, local=True, most=None if everything else 3))


def show_what_can_be_shown() -> None:
    """Let a terminal of few characters show the others as "?"."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


if __name__ == "__main__":
    show_what_can_be_shown()
    sys.exit(main(prog_name="python -m diffbook_lib"))
