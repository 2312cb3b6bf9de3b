"""Files that are either whole or not there, and the folder of what can be made again."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

from torch import Tensor


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file so that at every moment its old or its new content is there, never a part.

    Raises OSError, with the temporary file removed and the old content intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def cache_folder() -> Path:
    """The folder DIFFBOOK_CACHE names, else the user's, such as ~/.cache/diffbook: downloads,
    decoded pictures, trained classifiers, reference features."""
    import pooch

    return Path(os.environ.get("DIFFBOOK_CACHE") or pooch.os_cache("diffbook")).expanduser()


def cached_tensors(name: str, build: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors that are slow to build, kept in `cache_folder()` under `name`, such as
    "decoded/celeba-64".

    The file appears under its name only when complete. A damaged one is reported and built anew;
    a disk that refuses costs the next start some time, nothing more.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save

    path = cache_folder() / f"{name}.safetensors"
    if path.exists():
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            warnings.warn(f"{path} is damaged ({error}); it is made anew", stacklevel=2)
    tensors = build()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, save({key: t.contiguous() for key, t in tensors.items()}))
    except OSError as error:
        warnings.warn(f"{path} is not kept for the next start: {error}", stacklevel=2)
    return tensors
