"""Which frames of a set a call of a recipe needs, and whether all are there, by the rules of the reference.

A file is for an IFU if it or one of its extensions is called ``CHANnn``; a file that names no IFU is for all of them
unless it is a product (``PIPEFILE``).  The reference counts a raw exposure also for IFUs that it does not have, and
then stops later, or makes a master of too few exposures; here it does not count.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import InputError
from ..io.channels import Channels, number_ranges, read_channels
from ..io.sof import Frame
from ..recipe import Input, Recipe

log = logging.getLogger(__name__)

#: for all IFUs, whatever their headers say
_FOR_ALL = ("GEOMETRY_TABLE", "TWILIGHT_CUBE")


def ifus_of(recipe: Recipe, frames: Iterable[Frame]) -> list[int]:
    """IFUs that the raw frames of a recipe have data of.

    Those whose detector is dead and left no data are not among them, with a warning.

    Raises
    ------
    InputError
        If there is no raw frame, or if one cannot be read.
    """
    frames = list(frames)
    raws = _raw_frames(recipe, frames)
    inputs = _inputs(recipe, raws)
    ignored = [f for f in raws if not any(i.tag == f.tag for i in inputs)]
    if ignored:
        tags = ", ".join(dict.fromkeys(f.tag for f in ignored))
        log.warning("%s works on %s alone if there are such frames; left out: %s", recipe.name, inputs[0].tag, tags)
        raws = [f for f in raws if f not in ignored]
    found, dead = _find_ifus(raws if recipe.raw_tags else [f for f in frames if recipe.input(f.tag)])
    if not found:
        names = _names(raws or frames)
        if dead:
            raise InputError(f"{names}: no data of the IFUs {number_ranges(sorted(dead))}, their detectors are dead")
        raise InputError(f"{names}: no extension CHANnn found, expected those of raw exposures")
    for ifu, path in sorted(dead.items()):
        log.warning(
            "%s[CHAN%02d]: the detector is dead (ESO DET CHIP LIVE = F) and there are no data; IFU %d is left out",
            path, ifu, ifu,
        )  # fmt: skip
    return sorted(found)


def _find_ifus(frames: Iterable[Frame]) -> tuple[set[int], dict[int, Path]]:
    """IFUs of some frames, and those of which there are only dead detectors, with one of the files."""
    found: set[int] = set()
    dead: dict[int, Path] = {}
    for frame in frames:
        channels = read_channels(frame.path)
        for ifu in channels.ifus:
            if _is_dead(channels, ifu):
                dead.setdefault(ifu, frame.path)
            else:
                found.add(ifu)
    return found, {ifu: path for ifu, path in dead.items() if ifu not in found}


def check_frames(recipe: Recipe, frames: Iterable[Frame], ifu: int | None = None) -> list[Frame]:
    """Select the frames that a call of a recipe needs, and check their numbers.

    Parameters
    ----------
    recipe : Recipe
    frames : iterable of Frame
        For any IFUs; tags that the recipe does not take are left out.
    ifu : int, optional
        IFU of a recipe that works on one at a time.

    Returns
    -------
    list of Frame
        In the order given.

    Raises
    ------
    InputError
        If there are too few or too many of a tag, or a raw frame has no data although the detector works; all that is
        missing is told.
    """
    frames = list(frames)
    raws = _raw_frames(recipe, frames)
    inputs = _inputs(recipe, raws)
    frames = [f for f in frames if any(i.tag == f.tag for i in inputs)]
    if ifu is not None:
        return _of_ifu(recipe, inputs, frames, ifu)
    if recipe.per_ifu:
        raise InputError(f"{recipe.name} works on one IFU at a time, and none was given")
    if recipe.exposures:
        return _of_all_ifus(recipe, inputs, frames)
    return _of_tables(recipe, inputs, frames)


def _raw_frames(recipe: Recipe, frames: Sequence[Frame]) -> list[Frame]:
    raws = [f for f in frames if f.tag in recipe.raw_tags]
    if recipe.raw_tags and not raws:
        tags = ", ".join(dict.fromkeys(f.tag for f in frames))
        raise InputError(
            f"{recipe.name}: no frames to work on found, expected {' or '.join(recipe.raw_tags)}; "
            + (f"there are {tags}" if tags else "the set of frames is empty")
        )
    return raws


def _inputs(recipe: Recipe, raws: Sequence[Frame]) -> tuple[Input, ...]:
    """What is needed for the raw frames that there are."""
    tags = {f.tag for f in raws}
    other = any(i.group == "raw" and i.tag in tags for i in recipe.alternative)
    return recipe.alternative if other else recipe.inputs


def _is_dead(channels: Channels, ifu: int) -> bool:
    channel = channels.extensions.get(ifu)
    return channel is not None and not channel.alive and not channel.data


def _fits(frame: Frame, ifu: int, raw: bool) -> bool:
    """Whether a file is for an IFU."""
    if frame.tag in _FOR_ALL:
        return True
    channels = read_channels(frame.path)
    if ifu not in channels.ifus:
        return channels.generic
    if raw and _is_dead(channels, ifu):
        return False
    channel = channels.extensions.get(ifu)
    if raw and channel is not None and not channel.data:
        raise InputError(
            f"{frame.path}[CHAN{ifu:02d}]: there are no data although the detector works (ESO DET CHIP LIVE = T)"
        )
    return True


def _of_ifu(recipe: Recipe, inputs: Sequence[Input], frames: Sequence[Frame], ifu: int) -> list[Frame]:
    problems: list[str] = []
    selected: set[int] = set()
    for i in inputs:
        tagged = [(k, f) for k, f in enumerate(frames) if f.tag == i.tag]
        mine = [(k, f) for k, f in tagged if _fits(f, ifu, i.group == "raw")]
        selected |= {k for k, _ in mine}
        if text := _problem(i, [f for _, f in mine], [f for _, f in tagged], ifu):
            problems.append(text)
    _raise(f"{recipe.name}, IFU {ifu}", problems)
    found = [f for k, f in enumerate(frames) if k in selected]
    if recipe.raw_tags and not any(f.tag in recipe.raw_tags for f in found):
        raws = [f for f in frames if f.tag in recipe.raw_tags]
        raise InputError(f"{recipe.name}, IFU {ifu}: no frame to work on is of this IFU; {_owners(raws, ifu)}")
    return found


def _problem(i: Input, mine: Sequence[Frame], tagged: Sequence[Frame], ifu: int) -> str:
    """What is wrong with the number of frames of a tag, or an empty text."""
    if len(mine) >= i.minimum and (i.maximum is None or len(mine) <= i.maximum):
        return ""
    text = f"{i.tag}: expected {i.count_text()}, found {len(mine) or 'none'}"
    if mine:
        text += f": {_names(mine)}"
    others = [f for f in tagged if f not in mine] if len(mine) < i.minimum else []
    return f"{text}; {_owners(others, ifu)}" if others else text


def _owners(frames: Sequence[Frame], ifu: int) -> str:
    """What IFUs frames have that are not of the one that is looked for."""
    groups: dict[str, list[Frame]] = {}
    for frame in frames:
        channels = read_channels(frame.path)
        dead = f"no data of IFU {ifu}, whose detector is dead"
        groups.setdefault(dead if _is_dead(channels, ifu) else channels.text(), []).append(frame)
    return "; ".join(f"with {text}: {_names(group)}" for text, group in groups.items())


def _names(frames: Sequence[Frame]) -> str:
    counts: dict[str, int] = {}
    for f in frames:
        counts[str(f.path)] = counts.get(str(f.path), 0) + 1
    names = [name if n == 1 else f"{name} ({n} times)" for name, n in counts.items()]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _raise(where: str, problems: Sequence[str]) -> None:
    if len(problems) == 1:
        raise InputError(f"{where}: {problems[0]}")
    if problems:
        raise InputError("\n  ".join([f"{where}: the frames do not fit", *problems]))


def _of_all_ifus(recipe: Recipe, inputs: Sequence[Input], frames: Sequence[Frame]) -> list[Frame]:
    """For a call that works on the exposures of all IFUs: an IFU whose calibrations are missing is left out."""
    selected: set[Frame] = set()
    failed: dict[int, InputError] = {}
    standard = recipe.standard_ifu
    ifus = ifus_of(recipe, frames)
    for ifu in ifus:
        try:
            selected |= set(_of_ifu(recipe, inputs, frames, ifu))
        except InputError as error:
            failed[ifu] = error
    if not selected:
        raise next(iter(failed.values()), InputError(f"{recipe.name}: the raw frames have data of no IFU"))
    if standard is not None and (standard in failed or standard not in ifus):
        why = str(failed.get(standard, ""))
        if not why:
            raws = [f for f in frames if f.tag in recipe.raw_tags]
            why = f"{recipe.name}, IFU {standard}: no frame to work on is of this IFU; {_owners(raws, standard)}"
        raise InputError(f"{why}\n  This IFU cannot be left out: the brightness of all others is compared with it.")
    for problem in failed.values():
        log.warning("%s; left out", problem)
    return [f for f in frames if f in selected]


def _of_tables(recipe: Recipe, inputs: Sequence[Input], frames: Sequence[Frame]) -> list[Frame]:
    """For a call on what was made of exposures: of one kind, there may be a file for each IFU.

    The reference does not count calibrations here: some are only needed with certain parameters or data.
    """
    problems = []
    for i in inputs:
        tagged = [f for f in frames if f.tag == i.tag]
        if i.maximum is None and len(tagged) >= i.minimum and i.minimum < 2:
            continue
        count = _most(tagged)
        if i.group == "calib" and count < i.minimum:
            log.warning("%s: %s: expected %s, found none", recipe.name, i.tag, i.count_text())
        elif count < i.minimum or (i.maximum is not None and count > i.maximum):
            problems.append(f"{i.tag}: expected {i.count_text()}, found {count}: {_names(tagged)}")
    _raise(recipe.name, problems)
    return list(frames)


def _most(frames: Sequence[Frame]) -> int:
    """Number of frames of an IFU, of the one that has most; a file without IFU counts for all."""
    if len(frames) < 2:
        return len(frames)
    owners = [read_channels(f.path).own for f in frames]
    return owners.count(None) + max((owners.count(ifu) for ifu in set(owners) - {None}), default=0)
