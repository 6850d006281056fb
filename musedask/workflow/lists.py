"""Lists of what goes with an exposure, ``<ID>_SCI.list`` and others: written to be edited, and read back.

A list has a path and a tag in each line; the first is the exposure.  ``_SCI`` is of an exposure of a target, ``_SKY``
of one of the sky; ``_TWI`` and ``_DAR`` have the twilight flats and darks that it uses, and what these need.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import InputError, OutputExistsError
from ..io.files import atomic_path
from ..io.sof import read_sof
from .associate import MADE_OF, Associations, Choice, Group
from .classify import RawFile, read_file
from .names import Block, block_of
from .rules import Override

PathLike = str | os.PathLike[str]

#: ends of the names of the lists
KINDS = ("SCI", "SKY", "TWI", "DAR")
_NAME = re.compile(rf"(.+)_({'|'.join(KINDS)})\.list")
#: what is left out if a list of an exposure does not have it; anything else is then chosen by the rules
_MAY_BE_CUT = ("ILLUM",)


# ----------------------------------------------------------------------------------------- writing


def list_texts(associations: Associations, group: Group, name: str) -> dict[str, str]:
    """Texts of the lists of an exposure, by the names of their files.

    Parameters
    ----------
    associations : Associations
    group : Group
        An exposure of a target or of the sky.
    name : str
        Its identifier.
    """
    choices = associations.choices[group.id]
    kind = "SKY" if group.tag == "SKY" else "SCI"
    without = ("TWILIGHT_CUBE", "MASTER_DARK")
    direct = [c for c in choices.values() if c.category not in without or c.group is None]
    texts = {f"{name}_{kind}.list": _text(group, direct)}
    for category, end in zip(without, ("TWI", "DAR"), strict=True):
        choice = choices.get(category)
        if choice is not None and choice.group is not None:
            below = associations.choices[choice.group.id].values()
            texts[f"{name}_{end}.list"] = _text(choice.group, below)
    return texts


def _text(group: Group, choices: Iterable[Choice]) -> str:
    lines = [f"{frame.path}  {frame.tag}" for frame in group.frames]
    seen = set(lines)
    for choice in choices:
        new = [line for frame in choice.frames if (line := f"{frame.path}  {frame.tag}") not in seen]
        if new:
            lines += [f"# {choice.category}: {choice.reason} ({choice.source}, level {choice.level})", *new]
            seen |= set(new)
    return "\n".join(lines) + "\n"


def write_lists(
    associations: Associations,
    ids: Mapping[RawFile, str],
    folders: Mapping[Block, str],
    root: PathLike,
    *,
    overwrite: bool = False,
) -> list[Path]:
    """Write the lists of all exposures of targets and of the sky, in a folder for each observing block.

    Parameters
    ----------
    associations : Associations
    ids : mapping of RawFile to str
        Identifiers of the exposures.
    folders : mapping of block to str
        Folders of the observing blocks, below `root`.
    root : path-like
    overwrite : bool
        Whether lists with other content may be replaced; they may have been edited.

    Returns
    -------
    list of Path

    Raises
    ------
    OutputExistsError
        If there are others; none is written then.
    """
    texts: dict[Path, str] = {}
    for group in associations.of_tag("OBJECT", "SKY"):
        frame = group.frames[0]
        folder = Path(root, folders[block_of(frame)])
        texts |= {folder / name: text for name, text in list_texts(associations, group, ids[frame]).items()}
    changed = [path for path, text in texts.items() if path.exists() and path.read_text() != text]
    if changed and not overwrite:
        raise OutputExistsError(
            f"{changed[0]}: exists and has other content, perhaps yours ({len(changed)} such lists); give --overwrite "
            "(overwrite=True) to replace them"
        )
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path, overwrite=True) as part:
            part.write_text(text)
    return list(texts)


# ----------------------------------------------------------------------------------------- reading


@dataclass
class UserLists:
    """What lists say.

    Attributes
    ----------
    overrides : list of Override
    exposures : list of Path
        Exposures that have a list.
    files : list of RawFile
        All files that are listed, with the tags that they have there.
    """

    overrides: list[Override] = field(default_factory=list)
    exposures: list[Path] = field(default_factory=list)
    files: list[RawFile] = field(default_factory=list)

    def merged(self, files: Iterable[RawFile]) -> list[RawFile]:
        """Files with those of the lists instead or besides."""
        mine = {f.path: f for f in self.files}
        there = [mine.pop(f.path, f) for f in files]
        return [*there, *mine.values()]


def find_lists(root: PathLike) -> list[Path]:
    """Lists in a folder and in folders in it; those of exposures come before those of twilights and darks."""
    found = [path for path in Path(root).rglob("*.list") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (str(path.parent), _parts(path)[0], KINDS.index(_parts(path)[1])))


def _parts(path: Path) -> tuple[str, str]:
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise InputError(f"{path}: expected a name that ends with {', '.join(f'_{kind}.list' for kind in KINDS)}")
    return match[1], match[2]


def read_lists(paths: Iterable[PathLike] | PathLike, known: Iterable[RawFile] = ()) -> UserLists:
    """Read lists, of musedask or of MUSEreduce, edited or not.

    Parameters
    ----------
    paths : path-like or iterable of path-like
        Lists, or a folder that has some.
    known : iterable of RawFile
        Files whose headers need not be read again.

    Returns
    -------
    UserLists

    Raises
    ------
    InputError
        If there is none, or a line has no tag or a file that is not there.
    """
    if isinstance(paths, str | os.PathLike):
        root = Path(paths)
        paths = find_lists(root) if root.is_dir() else [root]
        if not paths:
            raise InputError(f"{root}: no lists found, expected some <ID>_SCI.list")
    headers = {f.path: f for f in known}
    result = UserLists()
    files: dict[Path, RawFile] = {}
    of: dict[tuple[Path, str], tuple[Path, str]] = {}
    for path in sorted(map(Path, paths), key=lambda p: (str(p.parent), _parts(p)[0], KINDS.index(_parts(p)[1]))):
        name, kind = _parts(path)
        frames = read_sof(path)
        if not frames:
            raise InputError(f"{path}: nothing listed, expected the exposure in its first line")
        for frame in frames:
            place = frame.path.absolute()
            file = headers.get(place) or read_file(place)
            files[place] = file if file.tag == frame.tag and not file.note else replace(file, tag=frame.tag, note="")
        listed = [files[frame.path.absolute()] for frame in frames]
        first = listed[0]
        if kind in ("SCI", "SKY"):
            expected = "OBJECT" if kind == "SCI" else "SKY"
            if first.tag != expected:
                raise InputError(f"{path}: {first.tag} found in the first line, expected an exposure of tag {expected}")
            result.exposures.append(first.path)
            of[path.parent, name] = (first.path, path.name)
            result.overrides += _overrides(path, (str(first.path),), listed[1:])
            continue
        main = "SKYFLAT" if kind == "TWI" else "DARK"
        mains = [f for f in listed if f.tag == main]
        if not mains:
            raise InputError(f"{path}: no {main} found, expected some in the first lines")
        if (path.parent, name) in of:
            exposure = of[path.parent, name][0]
            result.overrides += _overrides(path, (str(exposure),), mains, cut=())
        result.overrides += _overrides(path, tuple(str(f.path) for f in mains), [f for f in listed if f.tag != main])
    result.files = list(files.values())
    return result


def _overrides(
    path: Path, frames: tuple[str, ...], listed: Sequence[RawFile], cut: tuple[str, ...] = _MAY_BE_CUT
) -> list[Override]:
    by_tag: dict[str, list[str]] = {tag: [] for tag in cut}
    for file in listed:
        by_tag.setdefault(file.tag, []).append(str(file.path))
    products = [tag for tag in by_tag if tag not in MADE_OF.values()]
    # where there are only raw frames, finished calibrations may be preferred all the same
    weak = not any(tag in MADE_OF for tag in by_tag)
    ordered = sorted(by_tag, key=lambda tag: tag not in products)
    return [
        Override(tag, tuple(by_tag[tag]), frames, origin=path.name, weak=weak and tag in MADE_OF.values())
        for tag in ordered
    ]


def named_files(overrides: Iterable[Override], known: Iterable[RawFile]) -> list[RawFile]:
    """Files that overrides name by absolute paths, perhaps with wildcards, and that are not known yet.

    Raises
    ------
    InputError
        If one of them cannot be read, or is not of MUSE.
    """
    there = {f.path for f in known}
    found: dict[Path, None] = {}
    for override in overrides:
        for pattern in override.files:
            if os.path.isabs(pattern):
                found |= dict.fromkeys(Path(name) for name in sorted(glob.glob(pattern)))
    return [read_file(path) for path in found if path not in there and path.is_file()]
