"""Sets of frames: which file plays which part in a call of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Frame:
    """A file and the part that it plays.

    Attributes
    ----------
    path : Path
    tag : str
        Category, e.g. ``MASTER_BIAS``.
    group : str
        ``RAW``, ``CALIB`` or empty, as the set of frames says; the recipes do not heed it.
    """

    path: Path
    tag: str
    group: str = ""
