"""What goes with what in some folders, with or without a configuration, before anything runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .archive import archive_of
from .associate import Associations, associate
from .classify import RawFile, examine
from .names import Block, block_folders, block_of, exposure_ids
from .rules import Rules
from .statics import find_statics

if TYPE_CHECKING:
    from .config import Config

PathLike = str | os.PathLike[str]


@dataclass
class Survey:
    """What was found.

    Attributes
    ----------
    associations : Associations
    ids : dict of RawFile to str
        Identifiers of exposures of targets and of the sky.
    folders : dict of block to str
        Folders of observing blocks.
    problems : list of (Path, str)
        Files that are of no use.
    """

    associations: Associations
    ids: dict[RawFile, str]
    folders: dict[Block, str]
    problems: list[tuple[Path, str]] = field(default_factory=list)


def survey(
    raw: Sequence[PathLike] = (),
    config: PathLike | Config | None = None,
    *,
    statics: PathLike | None = None,
    preference: str | None = None,
) -> Survey:
    """Sort the files of some folders.

    Parameters
    ----------
    raw : sequence of path-like
        Folders of raw exposures; default: those of the configuration.
    config : path-like or Config, optional
        Its rules, selections and static calibrations count.
    statics : path-like, optional
        Folder of static calibrations.
    preference : str, optional
        See `Rules`.

    Returns
    -------
    Survey

    Raises
    ------
    InputError
        If a folder is not there, or the configuration is wrong or selects nothing.
    """
    if config is not None:
        return _configured(raw, config, statics, preference)
    files, problems = examine(raw)
    archive = archive_of(raw)
    rules = Rules.from_mapping({} if preference is None else {"preference": preference})
    associations = associate(files, find_statics(None, statics), rules=rules, archive=archive)
    exposures = [f for f in files if f.tag in ("OBJECT", "SKY") and not f.product]
    return Survey(associations, exposure_ids(exposures), block_folders(map(block_of, exposures)), problems)


def _configured(
    raw: Sequence[PathLike], config: PathLike | Config, statics: PathLike | None, preference: str | None
) -> Survey:
    from .config import load_config
    from .sorting import sort_raw

    loaded = load_config(Path(config)) if isinstance(config, str | os.PathLike) else config
    own: dict[str, Any] = {}
    if raw:
        own["raw"] = [str(folder) for folder in raw]
    if preference is not None:
        own["association"] = {**loaded.musedask.association, "preference": preference}
    wide = {} if statics is None else {"static_calib_path": str(statics)}
    changed = loaded.model_copy(
        update={
            "musedask": loaded.musedask.model_copy(update=own), "global_": loaded.global_.model_copy(update=wide)
        }
    )  # fmt: skip
    found = sort_raw(changed)
    return Survey(found.associations, found.ids, found.folders)
