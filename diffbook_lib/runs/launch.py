"""Several processes on one machine: torchrun on `python -m diffbook_lib train DIR` or `sample DIR`.

The launcher and the workers meet through files in the run folder, so that nothing listens beyond
the loopback interface and nothing that could come from outside is unpickled.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import uuid
from pathlib import Path

from diffbook_lib.errors import Failed
from diffbook_lib.runs import folder as folders
from diffbook_lib.runs.presets import root

# torchrun's own store would listen on every interface, though nobody here asks it anything
NO_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


class RunFailed(Failed):
    """A run was started and did not reach its end."""


def command(folder: Path, processes: int, stage: str) -> list[str]:
    """The torchrun command of a stage, "train" or "sample"."""
    meeting = folder.resolve() / ".rendezvous"
    meeting.mkdir(parents=True, exist_ok=True)
    identity = uuid.uuid4().hex[:12]
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "1"),
        *(
            "--rdzv-backend",
            "c10d",
            "--rdzv-id",
            identity,
            "--rdzv-conf",
            "store_type=file",
        ),
        *(
            "--rdzv-endpoint",
            str(meeting / f"launcher-{identity}"),
            "--local-addr",
            "127.0.0.1",
        ),
        *(
            "--nproc_per_node",
            str(processes),
            "-m",
            "diffbook_lib",
            stage,
            str(folder),
        ),
    ]


def torchrun(folder: Path, processes: int, stage: str) -> None:
    """Run a stage of the run in `folder` with several processes, their output shown as it comes.

    RunFailed if one of them fails; all of them end with this process, however it ends.
    """
    lock, descriptors = folders.handed_on(folder)
    shown = ""
    with subprocess.Popen(
        command(folder, processes, stage),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=root(),
        env={**os.environ, **lock, **NO_STORE},
        pass_fds=descriptors,
        preexec_fn=end_with_parent,
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
        finally:
            process.wait()
            _tidy(folder)
    if process.returncode:
        raise RunFailed(
            f"{stage} with {processes} processes in {folder} "
            f"{_reason(shown, process.returncode)}"
        )


def end_with_parent() -> None:
    """Let this process be killed when the one that started it ends; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGKILL)


def _reason(shown: str, code: int) -> str:
    """What torchrun's exit code and output say about a failure, without its own log."""
    who, number = "the launcher", -code
    # torchrun itself ends the others by signal 15
    if killed := re.search(r"exitcode *: -(?!15 )(\d+) \(pid: (\d+)\)", shown):
        who, number = f"process {killed[2]}", int(killed[1])
    if number > 0:
        return (
            f"failed: {who} was ended by {signal.Signals(number).name}, perhaps for want of "
            "memory; the same command continues from the last checkpoint"
        )
    said = re.split(
        r"^[WE]\d{4} .*torch/distributed", shown, maxsplit=1, flags=re.MULTILINE
    )[0]
    return f"failed:\n{said[-2000:]}"


def _tidy(folder: Path) -> None:
    """Remove the files through which the processes have met."""
    for file in (folder / ".rendezvous").glob("*"):
        file.unlink(missing_ok=True)
