"""What exposures, observing blocks, pointings and collected files are called; and which exposures are one pointing.

Names are those of MUSEreduce.  Unlike there, they are never taken apart again, what is one pointing follows from
distances on the sky and not from rounded coordinates, angles are rounded modulo 360 deg, and exposures are counted in
each observing block in the order of time.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..errors import InputError
from .classify import RawFile

#: an observing block by its name and number
Block = tuple[str, int | None]

#: folders beside those of observing blocks
RESERVED = ("report",)
#: exposure times that differ by less are equal [s]
_SAME_TIME = 1.0


def block_of(file: RawFile) -> Block:
    """The observing block that an exposure is of."""
    return (file.ob_name, file.ob_id)


def radec(ra: float | None, dec: float | None) -> str:
    """Position as ``HHMMSSsDDMMSS``, rounded to whole seconds of time and of arc.

    Parameters
    ----------
    ra, dec : float or None
        [deg]; None counts as 0.
    """
    seconds = math.floor((ra or 0.0) % 360 * 240 + 0.5) % 86400
    arcsec = math.floor(abs(dec or 0.0) * 3600 + 0.5)
    sign = "-" if (dec or 0.0) < 0 and arcsec else "+"
    return f"{_sexagesimal(seconds)}{sign}{_sexagesimal(arcsec)}"


def _sexagesimal(seconds: int) -> str:
    return f"{seconds // 3600:02d}{seconds // 60 % 60:02d}{seconds % 60:02d}"


def exptime_text(exptime: float) -> str:
    """Exposure time in whole seconds, cut off, with four digits."""
    return f"{int(exptime):04d}"


def angle_text(angle: float) -> str:
    """Position angle, rounded, from 000 to 359."""
    return f"{round(angle) % 360:03d}"


def pointing_name(file: RawFile) -> str:
    """``HHMMSSsDDMMSS_EXPTIME``."""
    return f"{radec(file.ra, file.dec)}_{exptime_text(file.exptime)}"


def exposure_ids(files: Iterable[RawFile]) -> dict[RawFile, str]:
    """Identifiers ``HHMMSSsDDMMSS_EXPTIME_ANGLE_NN`` of exposures.

    Parameters
    ----------
    files : iterable of RawFile
        Exposures of targets and of the sky; they share their numbers.

    Returns
    -------
    dict of RawFile to str
        In the order of time; unique within an observing block.
    """
    found: dict[RawFile, str] = {}
    counts: dict[tuple[Block, str], int] = {}
    for file in sorted(files, key=lambda f: (f.mjd, f.name)):
        if file in found:
            continue
        prefix = f"{pointing_name(file)}_{angle_text(file.posang)}"
        number = counts.get((block_of(file), prefix), 0)
        counts[block_of(file), prefix] = number + 1
        found[file] = f"{prefix}_{number:02d}"
    return found


# ----------------------------------------------------------------------------------------- blocks


def safe_name(name: str) -> str:
    """A name as that of a folder: letters, digits and ``._+-``; everything else becomes ``_``."""
    return re.sub(r"^[.-]+", "_", re.sub(r"[^A-Za-z0-9._+-]", "_", name.strip()))


def block_folders(blocks: Iterable[Block]) -> dict[Block, str]:
    """Folders of observing blocks: their names, with their numbers where several have the same name."""
    ordered = list(dict.fromkeys(blocks))
    plain = {block: safe_name(block[0]) or "OB" for block in ordered}
    # file systems may not know large from small letters
    names = [name.lower() for name in plain.values()]
    folders: dict[Block, str] = {}
    for block, name in plain.items():
        folder = name
        if (names.count(name.lower()) > 1 or name == "OB" or name in RESERVED) and block[1] is not None:
            folder = f"{name}_{block[1]}"
        taken = {other.lower() for other in folders.values()}
        unique, number = folder, 1
        while unique.lower() in taken or unique in RESERVED:
            number += 1
            unique = f"{folder}_{number}"
        folders[block] = unique
    return folders


def matches_block(block: Block, patterns: Iterable[str]) -> bool:
    """Whether the name or the number of a block is one of some texts, which may have wildcards."""
    texts = (block[0], safe_name(block[0]), str(block[1]))
    return any(fnmatchcase(text, str(pattern)) for pattern in patterns for text in texts)


def select_blocks(blocks: Iterable[Block], patterns: Sequence[str]) -> list[Block]:
    """The blocks that a list names; all if it is empty.

    Raises
    ------
    InputError
        If an entry of the list fits none of them.
    """
    ordered = list(dict.fromkeys(blocks))
    for pattern in patterns:
        if not any(matches_block(block, [pattern]) for block in ordered):
            names = [block[0] for block in ordered]
            near = difflib.get_close_matches(str(pattern), names, 1)
            hint = f"perhaps {near[0]}" if near else f"there are {', '.join(names) or 'none'}"
            raise InputError(f"observing block {pattern!r} found in the list, but no exposure is of it; {hint}")
    return [block for block in ordered if not patterns or matches_block(block, patterns)]


def assign_targets(
    blocks: Iterable[Block],
    targets: Mapping[str, Sequence[str]] | None = None,
    *,
    all_in: str | None = None,
) -> dict[Block, str]:
    """Which target each block belongs to, whose exposures are combined.

    Parameters
    ----------
    blocks : iterable of (str, int or None)
    targets : mapping of str to sequence of str
        Names, numbers or patterns of blocks by the name of the target.
    all_in : str, optional
        Name of the target of all blocks that are of none of these.

    Returns
    -------
    dict
        Folders of targets; without the blocks that are combined by themselves.

    Raises
    ------
    InputError
        If a block is of several targets, or a target has no block.
    """
    ordered = list(dict.fromkeys(blocks))
    found: dict[Block, str] = {}
    for name, patterns in (targets or {}).items():
        words = [patterns] if isinstance(patterns, str) else list(patterns)
        if not select_blocks(ordered, words) or not words:
            raise InputError(f"target {name}: no observing blocks found, expected at least one")
        for block in select_blocks(ordered, words):
            folder = safe_name(name) or "target"
            if found.get(block, folder) != folder:
                raise InputError(f"observing block {block[0]}: belongs to the targets {found[block]} and {folder}")
            found[block] = folder
    if all_in:
        for block in ordered:
            found.setdefault(block, safe_name(all_in) or "target")
    return found


# ----------------------------------------------------------------------------------------- pointings


@dataclass(frozen=True)
class PointingFiles:
    """Exposures that are combined.

    Attributes
    ----------
    name : str
        ``HHMMSSsDDMMSS_EXPTIME`` of the first one.
    parent : str
        Folder of the observing block or of the target.
    files : tuple of RawFile
        In the order of time.
    collected : tuple of str
        ``OB_EXPTIME_ANGLE_NN`` of each: what follows the category in the names of collected files.
    """

    name: str
    parent: str
    files: tuple[RawFile, ...]
    collected: tuple[str, ...]


def separation(one: RawFile, other: RawFile) -> float:
    """Angle between two exposures on the sky [arcsec]; infinite if one has no position."""
    if one.ra is None or one.dec is None or other.ra is None or other.dec is None:
        return math.inf
    a, b = math.radians(one.dec), math.radians(other.dec)
    half = math.sin((b - a) / 2) ** 2
    half += math.cos(a) * math.cos(b) * math.sin(math.radians(other.ra - one.ra) / 2) ** 2
    return math.degrees(2 * math.asin(min(1.0, math.sqrt(half)))) * 3600


def cluster(files: Iterable[RawFile], tolerance: float) -> list[list[RawFile]]:
    """Exposures that are near each other on the sky.

    An exposure belongs to a cluster if it is within the tolerance of any of its members, so that the result depends
    neither on the order nor on where lines of rounding lie.

    Parameters
    ----------
    files : iterable of RawFile
    tolerance : float
        [arcsec]

    Returns
    -------
    list of list of RawFile
        Each in the order of time, those that begin earlier first.
    """
    ordered = sorted(files, key=lambda f: (f.mjd, f.name))
    clusters: list[list[RawFile]] = []
    for file in ordered:
        near = [c for c in clusters if any(separation(file, member) <= tolerance for member in c)]
        merged = [member for c in near for member in c] + [file]
        clusters = [c for c in clusters if c not in near] + [merged]
    found = [sorted(c, key=lambda f: (f.mjd, f.name)) for c in clusters]
    return sorted(found, key=lambda c: (c[0].mjd, c[0].name))


def _times(files: Iterable[RawFile]) -> dict[RawFile, int]:
    """Number of the exposure time of each exposure, where nearly equal ones have the same number."""
    found: dict[RawFile, int] = {}
    number, last = 0, -math.inf
    for file in sorted(files, key=lambda f: f.exptime):
        if file.exptime - last > _SAME_TIME:
            number += 1
        found[file], last = number, file.exptime
    return found


def pointings(
    files: Iterable[RawFile],
    folders: Mapping[Block, str],
    *,
    tolerance: float = 30.0,
    targets: Mapping[Block, str] | None = None,
    ids: Mapping[RawFile, str] | None = None,
    exp_list: Sequence[str] = (),
) -> list[PointingFiles]:
    """Which exposures are combined.

    Exposures of a block, or of the blocks of a target, are one pointing if they are near each other on the sky and of
    one mode and exposure time.

    Parameters
    ----------
    files : iterable of RawFile
        Exposures of targets.
    folders : mapping of block to str
        See `block_folders`.
    tolerance : float
        See `cluster` [arcsec].
    targets : mapping of block to str, optional
        See `assign_targets`.
    ids : mapping of RawFile to str, optional
        Identifiers, of the exposures of the sky, too, with which they share their numbers; see `exposure_ids`.
    exp_list : sequence of str
        Identifiers of exposures, perhaps with ``OB/`` before: only these are combined, wherever they are.

    Returns
    -------
    list of PointingFiles
        In the order of time.

    Raises
    ------
    InputError
        If an entry of the list is no exposure.
    """
    ordered = sorted(files, key=lambda f: (f.mjd, f.name))
    ids = ids or exposure_ids(ordered)
    parents = {f: (targets or {}).get(block_of(f)) or folders[block_of(f)] for f in ordered}
    groups: list[list[RawFile]] = []
    if exp_list:
        chosen = [f for entry in exp_list for f in _listed(entry, ordered, ids, folders)]
        by_parent: dict[str, list[RawFile]] = {}
        for file in dict.fromkeys(chosen):
            by_parent.setdefault(parents[file], []).append(file)
        groups = list(by_parent.values())
    else:
        times = _times(ordered)
        alike: dict[tuple[str, str, int], list[RawFile]] = {}
        for file in ordered:
            alike.setdefault((parents[file], file.mode, times[file]), []).append(file)
        groups = [members for some in alike.values() for members in cluster(some, tolerance)]
        groups.sort(key=lambda members: (members[0].mjd, members[0].name))
    found: list[PointingFiles] = []
    taken: set[tuple[str, str]] = set()
    for members in groups:
        first, parent = members[0], parents[members[0]]
        name = _unique(pointing_name(first), first.mode, lambda n, p=parent: (p, n) in taken)  # type: ignore[misc]
        taken.add((parent, name))
        found.append(PointingFiles(name, parent, tuple(members), collected_names(members, folders)))
    return found


def _unique(name: str, mode: str, is_taken: Callable[[str], bool]) -> str:
    candidates = [name, f"{name}_{mode}", *(f"{name}_{mode}_{k}" for k in range(2, 1000))]
    return next(c for c in candidates if not is_taken(c))


def _listed(
    entry: str, files: Sequence[RawFile], ids: Mapping[RawFile, str], folders: Mapping[Block, str]
) -> list[RawFile]:
    block, _, identifier = entry.rpartition("/")
    found = [
        f for f in files if ids[f] == identifier and (not block or folders[block_of(f)] == block.rpartition("/")[2])
    ]
    if not found:
        near = difflib.get_close_matches(identifier, list(ids.values()), 1)
        hint = f", perhaps {near[0]}" if near else ""
        raise InputError(f"exp_list: {entry!r} found, but there is no such exposure{hint}")
    return found


def collected_names(files: Sequence[RawFile], folders: Mapping[Block, str]) -> tuple[str, ...]:
    """``OB_EXPTIME_ANGLE_NN`` of exposures of a pointing; NN counts those of equal time and angle."""
    counts: dict[str, int] = {}
    found = []
    for file in files:
        middle = f"{exptime_text(file.exptime)}_{angle_text(file.posang)}"
        number = counts.get(middle, 0)
        counts[middle] = number + 1
        found.append(f"{folders[block_of(file)]}_{middle}_{number:02d}")
    return tuple(found)
