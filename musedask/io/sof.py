"""Sets of frames: which file plays which part in a call of a recipe."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..recipe import Recipe
from ..recipes import RECIPES
from .files import atomic_path

log = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]

_GROUPS = ("RAW", "CALIB")
#: problems that are told at once
_MOST = 10


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


def read_sof(*paths: PathLike, recipe: Recipe | None = None) -> list[Frame]:
    """Read sets of frames, one after the other.

    A line has a path, a tag and perhaps RAW or CALIB, with blanks or tabs between them; empty lines and those that
    begin with ``#`` do not count.  As for esorex, environment variables are expanded (``$CAL/x.fits``,
    ``${CAL}/x.fits``), and paths are relative to the current directory.  Other than there, paths may have blanks.

    Parameters
    ----------
    *paths : path
        At least one.
    recipe : Recipe, optional
        Frames with tags that it does not take are left out, with a warning.

    Returns
    -------
    list of Frame
        In the order of the files, with absolute paths.  A file that is listed several times is there as often, with a
        warning.

    Raises
    ------
    InputError
        If a set of frames cannot be read, or if a line has no tag or a file that is not there; all such lines are
        told.
    """
    frames: list[Frame] = []
    problems: list[str] = []
    first: dict[Frame, str] = {}
    for path in paths:
        sof = Path(path)
        for number, line in enumerate(_lines(sof), 1):
            where = f"{sof}, line {number}"
            try:
                frame = _frame(line, sof)
            except InputError as error:
                problems.append(f"{where}: {error}")
                continue
            if frame is None:
                continue
            known = Frame(frame.path, frame.tag)
            if known in first:
                log.warning(
                    "%s: %s is listed again as %s (first in %s); it counts as often", where, frame.path, frame.tag,
                    first[known],
                )  # fmt: skip
            first.setdefault(known, where)
            frames.append(frame)
    if problems:
        more = [f"... and {len(problems) - _MOST} more"] if len(problems) > _MOST else []
        raise InputError("\n".join(problems[:_MOST] + more))
    return frames if recipe is None else known_frames(recipe, frames)


def _lines(sof: Path) -> list[str]:
    try:
        content = sof.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{sof}: no such file, expected a set of frames") from None
    except OSError as error:
        raise InputError(f"{sof}: cannot be read: {error.strerror or error}") from error
    if content.startswith(b"SIMPLE  ="):
        raise InputError(f"{sof}: a FITS file found, expected a set of frames: lines with a path and a tag")
    try:
        return content.decode().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{sof}: not a text file, expected a set of frames: lines with a path and a tag") from error


def _frame(line: str, sof: Path) -> Frame | None:
    """Frame of a line, None if it has none.

    Raises
    ------
    InputError
        Says what is wrong with it.
    """
    fields = [(match.end(), match[0]) for match in re.finditer(r"\S+", line)]
    if not fields or fields[0][1].startswith("#"):
        return None
    begin = len(line) - len(line.lstrip())
    # the path ends where a file of that name is; almost always after the first field
    for last in range(max(len(fields) - 1, 1)):
        name = _expanded(line[begin : fields[last][0]])
        if os.path.isfile(name):
            break
    else:
        raise InputError(_why_missing(_expanded(fields[0][1]), sof))
    rest = [text for _, text in fields[last + 1 : last + 3]]
    if not rest:
        raise InputError(f"{name} has no tag, expected one after the path, e.g. BIAS")
    if not os.access(name, os.R_OK):
        raise InputError(f"{name}: may not be read: permission denied")
    group = rest[1].upper() if len(rest) > 1 else ""
    return Frame(Path.cwd() / name, rest[0], group if group in _GROUPS else "")


def _expanded(text: str) -> str:
    if "$" not in text or os.path.exists(text):
        return text
    expanded = os.path.expandvars(text)
    if unknown := re.search(r"\$\{?(\w+)", expanded):
        raise InputError(f"{text}: the environment variable {unknown[1]} is not set")
    return expanded


def _why_missing(name: str, sof: Path) -> str:
    if os.path.isdir(name):
        return f"{name}: a folder found, expected a file"
    beside = sof.absolute().parent / name
    if not os.path.isabs(name) and beside.is_file():
        return (
            f"{name}: no such file in {Path.cwd()}, the current directory, where relative paths begin; it is beside "
            f"the set of frames: write {beside}, or go to {sof.absolute().parent}"
        )
    return f"{name}: no such file" + ("" if os.path.isabs(name) else f" in {Path.cwd()}")


def known_frames(recipe: Recipe, frames: Iterable[Frame]) -> list[Frame]:
    """The frames that a recipe takes; warnings name the tags of the others, and what may have been meant."""
    frames = list(frames)
    others: dict[str, list[str]] = {}
    for frame in frames:
        if recipe.input(frame.tag) is None:
            others.setdefault(frame.tag, []).append(frame.path.name)
    taken = [r for r in RECIPES.values() if r is not recipe]
    known = [tag for tag in others if any(r.input(tag) for r in taken)]
    if known:
        listed = ", ".join(f"{tag} ({len(others[tag])})" for tag in known)
        log.warning("%s does not take frames of other recipes, which are left out: %s", recipe.name, listed)
    for tag in others:
        if tag not in known:
            names = ", ".join(others[tag][:3]) + (", ..." if len(others[tag]) > 3 else "")
            log.warning("no recipe takes %s%s; left out: %s", tag, _meant(recipe, tag), names)
    return [frame for frame in frames if frame.tag not in others]


def _meant(recipe: Recipe, tag: str) -> str:
    from difflib import get_close_matches

    tags = [i.tag for r in (recipe, *RECIPES.values()) for i in (*r.inputs, *r.alternative)]
    near = get_close_matches(tag.upper(), dict.fromkeys(tags), n=1, cutoff=0.7)
    return f" (did you mean {near[0]}?)" if near else ""


def write_sof(path: PathLike, frames: Sequence[Frame], *, relative_to: PathLike | None = None) -> Path:
    """Write a set of frames, whole or not at all; an existing one is replaced.

    Parameters
    ----------
    path : path
    frames : sequence of Frame
    relative_to : path, optional
        Folder that the paths are made relative to: that in which esorex will run.  By default they are absolute.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If a path has blanks, which esorex cannot read, or if a tag is empty or has blanks.
    """
    path = Path(path)
    text = "".join(_written(frames, None if relative_to is None else Path(relative_to)))
    with atomic_path(path, overwrite=True) as temporary:
        Path(temporary).write_text(text)
    return path


def _written(frames: Sequence[Frame], folder: Path | None) -> Iterator[str]:
    for frame in frames:
        name = str(frame.path.absolute())
        if folder is not None:
            name = os.path.relpath(name, folder.absolute())
            if name.startswith(("#", "$")):
                name = f"./{name}"
        if re.search(r"\s", name):
            raise InputError(f"{name}: esorex cannot read paths with blanks from a set of frames; link or rename it")
        if not frame.tag or re.search(r"\s", frame.tag):
            raise InputError(f"{name}: tag {frame.tag!r} found, expected one word, e.g. BIAS")
        yield " ".join(filter(None, (name, frame.tag, frame.group))) + "\n"
