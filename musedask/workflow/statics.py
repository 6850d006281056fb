"""Static calibrations: where an installed pipeline keeps them.  Which one serves what is said by their headers."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import InputError
from .classify import RawFile, examine

log = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]

#: folders of kits below that of an installed pipeline: its own installer, packages of distributions, MacPorts
KITS = (
    "calib/muse*",
    "calib/*/muse*",
    "share/esopipes/datastatic/muse*",
    "share/esopipes/muse*",
    "datastatic/muse*",
    "muse*",
)


def kit_version(folder: Path) -> tuple[int, ...]:
    """Version in the name of a folder: (2, 8, 7) of ``muse-2.8.7``."""
    return tuple(int(number) for number in re.findall(r"\d+", folder.name))


def static_folder(pipeline_path: PathLike | None = None, static_calib_path: PathLike | None = None) -> Path | None:
    """The folder of the static calibrations.

    Parameters
    ----------
    pipeline_path : path-like, optional
        Where the pipeline is installed; of several kits there the newest counts.
    static_calib_path : path-like, optional
        The folder itself; takes precedence.

    Returns
    -------
    Path or None
        None if neither is given.

    Raises
    ------
    InputError
        If there is no such folder, or no kit below `pipeline_path`.
    """
    if static_calib_path is not None:
        folder = Path(static_calib_path)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder, expected static calibrations (static_calib_path)")
        return folder.absolute()
    if pipeline_path is None:
        return None
    root = Path(pipeline_path)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder, expected an installed pipeline (pipeline_path)")
    for pattern in KITS:
        kits = [folder for folder in root.glob(pattern) if folder.is_dir() and _has_files(folder)]
        if kits:
            return max(kits, key=lambda folder: (kit_version(folder), folder.name)).absolute()
    if _has_files(root):
        return root.absolute()
    raise InputError(
        f"{root}: no static calibrations found in {', '.join(KITS[:3])} below it; give static_calib_path instead"
    )


def _has_files(folder: Path) -> bool:
    return any(name.endswith((".fits", ".fits.fz")) for _, _, names in os.walk(folder) for name in names)


def find_statics(
    pipeline_path: PathLike | None = None,
    static_calib_path: PathLike | None = None,
    *,
    cache: PathLike | None = None,
) -> list[RawFile]:
    """Static calibrations of a pipeline, with a warning for each file that is none.

    Parameters
    ----------
    pipeline_path, static_calib_path : path-like, optional
        See `static_folder`.
    cache : path-like, optional
        See `musedask.workflow.classify.examine`.

    Returns
    -------
    list of RawFile
        Empty if no folder is given.
    """
    folder = static_folder(pipeline_path, static_calib_path)
    if folder is None:
        return []
    files, problems = examine(folder, cache=cache)
    for path, reason in problems:
        log.warning("%s: left out: %s", path, reason)
    return only_products(files)


def only_products(files: Iterable[RawFile]) -> list[RawFile]:
    """Those that have a category of products."""
    return [file for file in files if file.product]
