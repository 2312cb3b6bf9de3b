"""The command line, `python -m diffbook_lib`: a thin face over papermill and the run notebooks."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from diffbook_lib import presets


class Commands(click.Group):
    """Turns the library's errors into one message: exit 2 if refused, 1 if a run failed."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort):
            raise
        except (ValueError, RuntimeError, OSError) as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(2 if isinstance(error, ValueError) else 1)


def value(text: str) -> Any:
    """The value of a parameter given as text: number, true, false, null, [list], else text."""
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    words = {"true": True, "false": False, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    if not text.startswith("["):
        return text
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise presets.PresetError(f"{text!r} is no list; write for example '[1, 2]'") from None


def preset_arguments(command: Callable) -> Callable:
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
    for chosen in [method] if method else presets.SPECS:
        for name in presets.names(chosen):
            click.echo(f"{chosen:<12} {name:<12} {presets.summary(chosen, name)}")
    if method:
        click.echo("\nparameters, with the notebook's defaults:")
        fields = presets.spec_class(method).model_fields
        for name, default in presets.defaults(presets.notebook_path(method)).items():
            if name in fields:
                click.echo(f"  {name:<18} {default!r:<14} {fields[name].description}")


@main.command()
@preset_arguments
@click.option("--gpu", default="H100", show_default=True, help="Card the time is stated for.")
@click.option(
    "--utilisation", default=0.3, show_default=True, help="Share of the card's peak reached."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def estimate(
    method: str, preset: str, parameters: list, gpu: str, utilisation: float, as_json: bool
) -> None:
    """Parameters, FLOPs, memory and GPU hours of a run; starts nothing."""
    from diffbook_lib.estimate import estimate

    overrides = {name: value(text) for name, text in parameters}
    found = estimate(method, preset, overrides, gpu, utilisation)
    click.echo(json.dumps(found.as_dict(), indent=1) if as_json else found)


@main.command()
@preset_arguments
@click.option("--out", help="Run folder.  [default: runs/METHOD-PRESET]")
@click.option("--processes", default=1, show_default=True, help="Training processes (torchrun).")
@click.option("--prepare", is_flag=True, help="Only write DIR/spec.json, for `train DIR`.")
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
    parameters: list,
    out: str | None,
    processes: int,
    prepare: bool,
    where: str,
    **slurm: Any,
) -> None:
    """Run a preset: papermill on nbs/METHOD.ipynb. The same command again continues."""
    from diffbook_lib import jobs, records

    overrides = {name: value(text) for name, text in parameters}
    if prepare:
        plan = jobs.prepare(method, preset, overrides, out, processes)
        click.echo(records.start_run(plan.folder, plan.spec) / "spec.json")
    else:
        jobs.run(method, preset, overrides, out, processes, where, **slurm)


@main.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def train(folder: Path) -> None:
    """The training process alone: what torchrun and Slurm start. DIR holds spec.json."""
    from diffbook_lib import jobs

    jobs.train_folder(folder)


@main.command()
@click.argument("method", required=False)
@click.option("--keep", metavar="DIR", help="Copy the record of the run in DIR to results/.")
def results(method: str | None, keep: str | None) -> None:
    """The table of recorded runs beside the published figures."""
    from diffbook_lib import results

    if keep:
        click.echo(results.keep(keep))
        return
    for chosen in [method] if method else presets.SPECS:
        presets.spec_class(chosen)
        click.echo(results.table(chosen, local=True))


if __name__ == "__main__":
    sys.exit(main(prog_name="python -m diffbook_lib"))
