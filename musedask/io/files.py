"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError, OutputExistsError, PlanError


def check_output(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Check that an output may be written, before any work is done.

    Raises
    ------
    OutputExistsError
        If it exists and `overwrite` is false.
    InputError
        If its folder does not exist or cannot be written to, or if it is a folder that is no Zarr
        group, which is never replaced.
    """
    path = Path(path)
    folder = path.absolute().parent
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path}: exists already; give --overwrite (overwrite=True) to replace it")
    if path.is_dir() and any(path.iterdir()) and not (path / "zarr.json").exists():
        raise InputError(f"{path}: is a folder and no Zarr group; it is not replaced, choose another name")
    if not folder.is_dir():
        raise InputError(f"{path}: its folder {folder} does not exist")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{path}: its folder {folder} cannot be written to")
    return path


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary name beside `path`; rename it to `path` on success, remove it on failure.

    Parameters
    ----------
    path : path-like
        The final name of a file or directory.
    overwrite : bool
        Whether something of that name may be replaced.

    Raises
    ------
    OutputExistsError
        If `path` exists and `overwrite` is false.
    PlanError
        If the disk is full.
    """
    path = check_output(path, overwrite=overwrite)
    folder = path.absolute().parent
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=folder)
    os.close(handle)
    os.chmod(name, 0o666 & ~_umask())
    temporary = Path(name)
    try:
        yield temporary
        publish(temporary, path)
    except OSError as error:
        if error.errno == 28:
            raise PlanError(f"{path}: no space left on the disk while writing; nothing was kept") from error
        raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def publish(source: Path, path: Path) -> None:
    """Give a finished file or folder its name, replacing what had it."""
    if source.is_dir() and (path.exists() or path.is_symlink()) and not (path.is_dir() and not path.is_symlink()):
        path.unlink()
    elif path.is_dir() and not path.is_symlink():
        # put aside first: at no time is there half an old one
        aside = path.with_name(f".{path.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)
        os.replace(source, path)
        shutil.rmtree(aside, ignore_errors=True)
        return
    os.replace(source, path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
