"""Intermediate products are removed to save disk; never a raw file, never a final cube."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..compute import format_bytes
from .state import State
from .steps import Step

if TYPE_CHECKING:
    from .reduce import Plan

log = logging.getLogger("musedask")

#: what each switch of the section ``cleanup`` stands for: names of steps
PARTS = {
    "include_std": ("std_basic", "std_flux"),
    "include_combined": ("dither_collect", "exp_align"),
    "include_calibrations": (
        "bias", "dark", "flat", "wavecal", "lsf", "twilight", "astrometry", "sci_basic", "sky", "sci_post",
    ),
}  # fmt: skip
#: products of muse_scipost that are results in their own right
_RESULTS = ("DATACUBE_FINAL", "IMAGE_FOV")


@dataclass(frozen=True)
class Removal:
    """A file that may go.

    Attributes
    ----------
    path : Path
    step : Step
    size : int
        Disk that it takes, which is none if it is a second name of another file [bytes].
    """

    path: Path
    step: Step
    size: int


def removable(plan: Plan, parts: set[str] | None = None) -> list[Removal]:
    """Products that may be removed: those that calls are known to have made, of some parts.

    Parameters
    ----------
    plan : Plan
    parts : set of str, optional
        Keys of `PARTS`; default: those that the configuration names.

    Returns
    -------
    list of Removal
        Results (cubes, images) are not among them, nor is anything outside the folder of the products.
    """
    if parts is None:
        parts = {name for name in PARTS if getattr(plan.config.cleanup, name)}
    names = {step for part in parts for step in PARTS[part]}
    state, root = plan.state, plan.reduced.resolve()
    found: dict[Path, Removal] = {}
    for step in plan.graph:
        if step.name not in names:
            continue
        for node in step.nodes:
            record = state.record(node)
            for file in record.products if record is not None else ():
                path = Path(file.path)
                result = file.tag in _RESULTS and step.name in ("sci_post", "dither_collect")
                if result and not (step.name == "dither_collect" and "include_combined" in parts):
                    continue
                if path.resolve().is_relative_to(root) and path.is_file():
                    status = os.stat(path)
                    found[path] = Removal(path, step, status.st_size if status.st_nlink == 1 else 0)
    return list(found.values())


def cleanup(plan: Plan, state: State, parts: set[str] | None = None) -> int:
    """Remove intermediate products; a later run makes those anew that it needs.

    Returns
    -------
    int
        Number of files.
    """
    found = removable(plan, parts)
    for removal in found:
        removal.path.unlink(missing_ok=True)
    state.note("cleanup", files=len(found))
    if found:
        log.info("removed %d intermediate products, %s", len(found), format_bytes(sum(r.size for r in found)))
    return len(found)
