"""What a configuration selects: raw frames, what belongs to them, what they are called, what is combined."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..io.files import atomic_path
from .archive import archive_of
from .associate import Associations, associate
from .classify import RawFile, scan
from .graph import Exposure, Pointing, config_of, target_of
from .lists import UserLists, find_lists, named_files, read_lists, write_lists
from .names import (
    Block,
    assign_targets,
    block_folders,
    block_of,
    exposure_ids,
    matches_block,
    pointings,
    select_blocks,
)
from .rules import Override, Rules
from .state import FOLDER
from .statics import find_statics, static_folder

if TYPE_CHECKING:
    from .config import Config

log = logging.getLogger("musedask")

#: which static calibrations the last run used, in the folder of the state
_STATICS = "statics.json"
#: contents of the lists as they were written, likewise
_LISTS = "lists.json"
#: exposure times that differ by less are equal [s]
_SAME_TIME = 0.5


@dataclass
class Sorted:
    """Frames of a reduction, sorted.

    Attributes
    ----------
    raw : list of Path
        Folders of the raw data.
    reduced : Path
        Folder of the products.
    files : list of RawFile
        All that was found.
    associations : Associations
    ids : dict of RawFile to str
        Identifiers of exposures of targets and of the sky.
    folders : dict of block to str
        Folders of observing blocks.
    exposures : list of Exposure
        Those to be reduced.
    pointings : list of Pointing
        Those to be combined.
    statics : dict
        Static calibrations that are used, and where they were looked for.
    notes : list of str
        What of the configuration fits nothing.
    """

    raw: list[Path]
    reduced: Path
    files: list[RawFile] = field(default_factory=list)
    associations: Associations = field(default_factory=Associations)
    ids: dict[RawFile, str] = field(default_factory=dict)
    folders: dict[Block, str] = field(default_factory=dict)
    exposures: list[Exposure] = field(default_factory=list)
    pointings: list[Pointing] = field(default_factory=list)
    statics: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def warnings(self) -> list[str]:
        """What a user should know before anything runs."""
        found = [*self.notes, *self.associations.warnings]
        for group in self.associations.of_tag("OBJECT", "SKY", "STD"):
            found += [
                f"{group.frames[0].name}: {c.category}: {c.reason} (risk)"
                for c in self.associations.choices[group.id].values()
                if c.level == 3
            ]
        return found

    def write_statics(self) -> None:
        """Remember which static calibrations were used, for the next run."""
        with atomic_path(self.reduced / FOLDER / _STATICS, overwrite=True) as part:
            part.write_text(json.dumps(self.statics, indent=1))

    def write_lists(self) -> list[Path]:
        """Write the lists of the exposures; those that a user has changed stay, with a warning."""
        from ..errors import OutputExistsError

        note = self.reduced / FOLDER / _LISTS
        written: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            written = json.loads(note.read_text())
        # those of an earlier run with another configuration may be replaced
        own = all(written.get(str(path)) == _digest(path) for path in find_lists(self.reduced))
        try:
            lists = write_lists(self.associations, self.ids, self.folders, self.reduced, overwrite=own)
        except OutputExistsError as error:
            log.warning("%s; they are not used: set global.auto_sort_data to false for that", error)
            return []
        with atomic_path(note, overwrite=True) as part:
            part.write_text(json.dumps({**written, **{str(path): _digest(path) for path in lists}}, indent=1))
        return lists


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sort_raw(config: Config) -> Sorted:
    """Find raw frames, what belongs to them, and what is to be reduced and combined.

    Parameters
    ----------
    config : Config

    Returns
    -------
    Sorted

    Raises
    ------
    InputError
        If there is no raw data, or the selection fits nothing.
    """
    wide = config.global_
    raw, reduced = folders(config)
    for folder in raw:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder, expected raw data there (global.rootpath, musedask.raw)")
    # below the products, which may not be there yet
    cache = reduced / FOLDER / "headers.json" if reduced.is_dir() else None
    files = scan(raw, cache=cache)
    statics, remembered = _statics(config, reduced)
    overrides: list[Override] = []
    listed: set[Path] | None = None
    if not wide.auto_sort_data:
        lists = _user_lists(reduced, files)
        overrides, files, listed = lists.overrides, lists.merged(files), set(lists.exposures)
    wanted = _selection(config, files, listed)
    rules = rules_of(config)
    associations = associate(
        files, statics, rules=rules, archive=archive_of(raw), user=overrides,
        extra=named_files(rules.overrides, [*files, *statics]),
        wanted=lambda f: f in wanted,
    )  # fmt: skip
    found = _select(config, raw, reduced, files, associations)
    found.statics = remembered
    blocks = list(dict.fromkeys(block_of(f) for f in files if f.tag == "OBJECT"))
    combined = {target_of(config, p.parent) for p in found.pointings}
    found.notes = [
        f"obs: {name!r} found, but there is no exposure of such a block"
        for name in config.obs
        if name not in combined and not any(matches_block(b, [name]) for b in blocks)
    ]
    return found


def _statics(config: Config, reduced: Path) -> tuple[list[RawFile], dict[str, Any]]:
    """Static calibrations: those of the last run as long as they are there, unless they are to be renewed."""
    wide = config.global_
    where = {"pipeline_path": str(wide.pipeline_path), "static_calib_path": str(wide.static_calib_path)}
    folder = static_folder(wide.pipeline_path, wide.static_calib_path)
    found = find_statics(static_calib_path=folder)
    remembered: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        remembered = json.loads((reduced / FOLDER / _STATICS).read_text())
    if not wide.renew_statics and all(remembered.get(key) == value for key, value in where.items()):
        files = set(remembered["files"])
        before = found
        if remembered["folder"] != str(folder) and Path(remembered["folder"]).is_dir():
            before = find_statics(static_calib_path=remembered["folder"])
        before = [f for f in before if str(f.path) in files]
        if len(before) == len(files):
            tags = {f.tag for f in before}
            kept = [*before, *(f for f in found if f.tag not in tags)]
            if {f.path for f in kept} != {f.path for f in found}:
                log.info("static calibrations are those of the last run, though there are others in %s; set "
                         "global.renew_statics for these", folder)  # fmt: skip
                folder = Path(remembered["folder"])
            found = kept
        else:
            log.warning("%s: static calibrations of the last run are gone; they are looked for anew",
                        remembered["folder"])  # fmt: skip
    return found, {**where, "folder": str(folder), "files": sorted(str(f.path) for f in found)}


def folders(config: Config) -> tuple[list[Path], Path]:
    """Folders of the raw data, and that of the products.

    Raises
    ------
    InputError
        If the configuration does not say where they are.
    """
    own, wide = config.musedask, config.global_
    if wide.rootpath is None and (own.raw is None or own.reduced is None):
        raise InputError("global.rootpath is not set; it is the folder with raw/ in it")
    root = Path(wide.rootpath) if wide.rootpath is not None else Path()
    raw = [Path(p) for p in own.raw] if own.raw is not None else [root / "raw"]
    return raw, (Path(own.reduced) if own.reduced is not None else root / "reduced").absolute()


def rules_of(config: Config) -> Rules:
    """Rules of a configuration: those of its section ``association``, and what the keys of MUSEreduce say."""
    own = config.musedask
    # blocks may differ: the graph takes for each what it wants of what was found
    parts = [config, *(config.for_ob(name) for name in config.obs)]
    more = {
        "preference": "master" if config.global_.using_ESO_calibration else "raw_per_quality_level",
        "use_darks": any(part.calibration.dark for part in parts),
        "sky_field": "auto" if any(part.sky.sky_field == "auto" for part in parts) else "object",
        "astrometry": own.astrometry,
        **own.association,
    }
    return Rules.from_mapping(more)


def _user_lists(reduced: Path, files: Sequence[RawFile]) -> UserLists:
    paths = find_lists(reduced) if reduced.is_dir() else []
    if not paths:
        raise InputError(
            f"{reduced}: no lists (*_SCI.list) found there; global.auto_sort_data is false, which takes those of an "
            "earlier run or of musedask sort --lists"
        )
    return read_lists(paths, files)


def _selection(config: Config, files: Sequence[RawFile], listed: set[Path] | None = None) -> set[RawFile]:
    """Exposures of targets that are to be reduced; of some only, if these have lists."""
    wide = config.global_
    objects = [f for f in files if f.tag == "OBJECT" and not f.product]
    if not objects:
        raise InputError("no exposure of a target (OBJECT) found among the raw data")
    if listed is not None:
        objects = [f for f in objects if f.path in listed]
        if not objects:
            raise InputError("no list (*_SCI.list) of an exposure of a target found; global.auto_sort_data is false")
    if wide.mode is not None:
        fitting = [f for f in objects if not f.mode or f.mode == wide.mode or f.mode.rpartition("-")[0] == wide.mode]
        if not fitting:
            modes = ", ".join(sorted({f.mode for f in objects}))
            raise InputError(f"global.mode: {wide.mode} found, but the exposures are of {modes}")
        objects = fitting
    times = exposure_times(config)
    if times:
        fitting = [f for f in objects if any(abs(f.exptime - t) < _SAME_TIME for t in times)]
        if not fitting:
            there = ", ".join(f"{t:g}" for t in sorted({f.exptime for f in objects}))
            text = ", ".join(f"{t:g}" for t in times)
            raise InputError(f"global.using_specific_exposure_time: {text} s found, but the exposures are of {there} s")
        objects = fitting
    # MUSEreduce of old had the exposures of a block in a folder of the user's
    raw = folders(config)[0]
    blocks_there = list(dict.fromkeys(block_of(f) for f in objects))
    by_folder = [
        name for name in map(str, wide.OB_list)
        if not any(matches_block(block, [name]) for block in blocks_there) and any((r / name).is_dir() for r in raw)
    ]  # fmt: skip
    below = [(r / name).absolute() for r in raw for name in by_folder]
    found = {f for f in objects if any(f.path.is_relative_to(folder) for folder in below)}
    named = [name for name in wide.OB_list if str(name) not in by_folder]
    blocks = set(select_blocks(blocks_there, named)) if named or not by_folder else set()
    if not wide.auto_create_OB_folders and not wide.OB_list:
        reduced = folders(config)[1]
        places = block_folders(block_of(f) for f in files if f.tag in ("OBJECT", "SKY") and not f.product)
        blocks = {block for block in blocks if (reduced / places[block]).is_dir()}
        if not blocks:
            names = ", ".join(places[block] for block in blocks_there)
            raise InputError(
                f"{reduced}: no folder of an observing block found; global.auto_create_OB_folders is false, which "
                f"leaves those that have one or are in global.OB_list: {names}"
            )
    return found | {f for f in objects if block_of(f) in blocks}


def exposure_times(config: Config) -> list[float]:
    """Exposure times that are selected [s]; empty for all."""
    value = config.global_.using_specific_exposure_time
    if not value:
        return []
    return [float(v) for v in (value if isinstance(value, list | tuple) else [value])]


def _select(
    config: Config, raw: list[Path], reduced: Path, files: list[RawFile], associations: Associations
) -> Sorted:
    own, wide = config.musedask, config.global_
    science = associations.science()
    # all exposures have their numbers, whatever is selected
    ids = exposure_ids(f for f in files if f.tag in ("OBJECT", "SKY") and not f.product)
    folders = block_folders(block_of(f) for f in files if f.tag in ("OBJECT", "SKY") and not f.product)
    if wide.exp_list:
        chosen = {(PurePath(entry).parent.name, PurePath(entry).name) for entry in wide.exp_list}
        parts = {g.id: (folders[block_of(g.frames[0])], ids[g.frames[0]]) for g in science}
        # what is no exposure is told below
        science = [
            g for g in science
            if any(name == parts[g.id][1] and block in ("", parts[g.id][0]) for block, name in chosen)
        ] or science  # fmt: skip
    skies = {}
    for group in science:
        own_config = config_of(config, group.frames[0], folders[block_of(group.frames[0])])
        choice = associations.choices[group.id].get("SKY")
        if choice is not None and choice.group is not None and own_config.sky.sky_field == "auto":
            skies[choice.group.id] = choice.group
    exposures = [
        Exposure(ids[g.frames[0]], folders[block_of(g.frames[0])], g) for g in (*skies.values(), *science)
    ]
    by_file = {e.group.frames[0]: e for e in exposures}
    objects = [g.frames[0] for g in science]
    blocks = list(dict.fromkeys(block_of(f) for f in objects))
    name = None
    if wide.dither_multiple_OBs:
        name = _combined_name(blocks, folders)
    found = pointings(
        objects, folders, tolerance=own.pointing_tolerance,
        targets=assign_targets(blocks, own.targets, all_in=name), ids=ids, exp_list=wide.exp_list,
    )  # fmt: skip
    combined = [Pointing(p.name, p.parent, tuple(by_file[f] for f in p.files), p.collected) for p in found]
    return Sorted(raw, reduced, files, associations, ids, folders, exposures, combined)


def _combined_name(blocks: Sequence[Block], folders: dict[Block, str]) -> str:
    """Name of the target of all blocks together."""
    return "_".join(folders[b] for b in blocks) if len(blocks) < 3 else f"{folders[blocks[0]]}_and_{len(blocks) - 1}"


__all__ = ["Sorted", "exposure_times", "folders", "rules_of", "sort_raw"]
