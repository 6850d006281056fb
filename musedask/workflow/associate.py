"""Which calibrations belong to which exposures: pure functions of what the headers say.

Raw frames are put into groups, each of which one call of a recipe takes.  Beginning with the exposures of targets,
each group gets, for all that its recipes need, the best of what is there; what is chosen is a group again, and so on
down to the biases.  Choices are made for each exposure, not for observing blocks: a block of two nights gets the
calibrations of both.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from ..tags import TAGS
from .archive import Archive, Selection
from .classify import IGNORED, RawFile, archive_stem
from .rules import VIGNETTED_BEFORE, Override, Rules

#: words for the levels of quality
LEVELS = ("calibration plan", "good", "probably acceptable", "risk")
#: taken one by one; the others by template
SINGLE = ("ILLUM", "STD", "ASTROMETRY", "SKY", "OBJECT")
#: of which raw frames each product is made
MADE_OF: Mapping[str, str] = {
    "MASTER_BIAS": "BIAS", "MASTER_DARK": "DARK", "MASTER_FLAT": "FLAT", "TRACE_TABLE": "FLAT", "WAVECAL_TABLE": "ARC",
    "LSF_PROFILE": "ARC", "TWILIGHT_CUBE": "SKYFLAT", "STD_RESPONSE": "STD", "STD_TELLURIC": "STD",
    "ASTROMETRY_WCS": "ASTROMETRY",
}  # fmt: skip
#: products that come from the same call as another one, which is chosen first
_FOLLOWS: Mapping[str, str] = {
    "TRACE_TABLE": "MASTER_FLAT", "LSF_PROFILE": "WAVECAL_TABLE", "STD_TELLURIC": "STD_RESPONSE",
}  # fmt: skip
#: what must be equal (rules of ``muse.oca``)
KEYS: Mapping[str, tuple[str, ...]] = {
    "MASTER_BIAS": ("curid",),
    "MASTER_DARK": ("curid",),
    "MASTER_FLAT": ("mode", "curid"),
    "TRACE_TABLE": ("nominal", "field", "curid"),
    "WAVECAL_TABLE": ("nominal", "field", "curid"),
    "LSF_PROFILE": ("mode", "curid"),
    "TWILIGHT_CUBE": ("nominal", "field"),
    "ILLUM": ("field",),
    "STD_RESPONSE": ("mode",),
    "STD_TELLURIC": ("mode",),
    "ASTROMETRY_WCS": ("field",),
    "SKY": ("mode",),
}
#: what groups need, and whether they cannot do without
NEEDS: Mapping[str, Mapping[str, bool]] = {
    "BIAS": {},
    "DARK": {"MASTER_BIAS": True},
    "FLAT": {"MASTER_BIAS": True, "MASTER_DARK": False},
    "ARC": {
        "MASTER_BIAS": True, "MASTER_DARK": False, "MASTER_FLAT": False, "TRACE_TABLE": True, "LINE_CATALOG": True,
    },
    "ILLUM": {},
    "SKYFLAT": {
        "MASTER_BIAS": True, "MASTER_DARK": False, "MASTER_FLAT": True, "TRACE_TABLE": True, "WAVECAL_TABLE": True,
        "GEOMETRY_TABLE": True, "ILLUM": False, "VIGNETTING_MASK": False,
    },
}  # fmt: skip
_BASIC = {
    "MASTER_BIAS": True, "MASTER_DARK": False, "MASTER_FLAT": True, "TRACE_TABLE": True, "WAVECAL_TABLE": True,
    "GEOMETRY_TABLE": True, "TWILIGHT_CUBE": False, "ILLUM": False, "BADPIX_TABLE": False,
}  # fmt: skip
_SKY = {
    "LSF_PROFILE": True, "STD_RESPONSE": True, "STD_TELLURIC": False, "EXTINCT_TABLE": True, "SKY_LINES": True,
}  # fmt: skip
NEEDS = {
    **NEEDS,
    "STD": {
        **_BASIC, "EXTINCT_TABLE": True, "STD_FLUX_TABLE": True, "TELLURIC_REGIONS": False, "FILTER_LIST": False,
    },
    "ASTROMETRY": {
        **_BASIC, "STD_RESPONSE": False, "STD_TELLURIC": False, "EXTINCT_TABLE": False, "ASTROMETRY_REFERENCE": True,
    },
    "SKY": {**_BASIC, **_SKY},
    "OBJECT": {
        **_BASIC, **_SKY, "ASTROMETRY_WCS": False, "FILTER_LIST": False, "RAMAN_LINES": False, "SKY": False,
        "OUTPUT_WCS": False, "OFFSET_LIST": False,
    },
}  # fmt: skip
#: given as files, never made of raw frames
STATIC = (
    "LINE_CATALOG", "BADPIX_TABLE", "VIGNETTING_MASK", "EXTINCT_TABLE", "STD_FLUX_TABLE", "TELLURIC_REGIONS",
    "FILTER_LIST", "SKY_LINES", "RAMAN_LINES", "ASTROMETRY_REFERENCE",
)  # fmt: skip
#: only there if the user gives them
_BY_USER = ("OUTPUT_WCS", "OFFSET_LIST")


# ----------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class Group:
    """Raw frames that one call of a recipe takes.

    Attributes
    ----------
    id : str
        Unique, of characters that names of files may have.
    tag : str
    frames : tuple of RawFile
        In the order of time.
    """

    id: str
    tag: str
    frames: tuple[RawFile, ...]

    @property
    def mode(self) -> str:
        """``ESO INS MODE``."""
        return self.frames[0].mode

    @cached_property
    def mjd(self) -> float:
        """Mean of the starts."""
        return sum(f.mjd for f in self.frames) / len(self.frames)

    @cached_property
    def night(self) -> date:
        """Of the first frame."""
        return self.frames[0].night


@dataclass(frozen=True)
class Choice:
    """What a group gets of a category.

    Attributes
    ----------
    category : str
        As the recipes call it.
    group : Group or None
        Raw frames that it is to be made of; of ILLUM and SKY the exposure itself.
    files : tuple of RawFile
        Or finished files: one, or one for each IFU.
    source : str
        ``user``, ``archive`` or ``rule``.
    level : int
        0 to 3, see `LEVELS`.
    reason : str
    """

    category: str
    group: Group | None
    files: tuple[RawFile, ...]
    source: str
    level: int
    reason: str

    @property
    def frames(self) -> tuple[RawFile, ...]:
        """The raw frames, or the files."""
        return self.files if self.group is None else self.group.frames


@dataclass(frozen=True)
class Missing:
    """What a group needs and is not there.

    Attributes
    ----------
    group : str
        Its id.
    category : str
    required : bool
        Whether it cannot be reduced without.
    reason : str
    """

    group: str
    category: str
    required: bool
    reason: str


@dataclass
class Associations:
    """What goes with what.

    Attributes
    ----------
    groups : dict of str to Group
        All groups, also those that nothing uses.
    choices : dict of str to dict of str to Choice
        By group and category, of all groups that are used.
    missing : list of Missing
    unused : list of (RawFile, str)
        With the reason.
    warnings : list of str
        What of the archive's or the user's choice could not be followed.
    """

    groups: dict[str, Group] = field(default_factory=dict)
    choices: dict[str, dict[str, Choice]] = field(default_factory=dict)
    missing: list[Missing] = field(default_factory=list)
    unused: list[tuple[RawFile, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def of_tag(self, *tags: str) -> list[Group]:
        """Groups of some tags that are used, in the order of time."""
        found = [self.groups[name] for name in self.choices]
        return sorted((g for g in found if g.tag in tags), key=lambda g: (g.mjd, g.id))

    def science(self) -> list[Group]:
        """Exposures of targets, in the order of time."""
        return self.of_tag("OBJECT")

    def used_by(self, group: str) -> list[str]:
        """Ids of groups that use a group."""
        return [
            name for name, choices in self.choices.items()
            if any(c.group is not None and c.group.id == group for c in choices.values())
        ]  # fmt: skip

    def lacks(self, group: str) -> list[Missing]:
        """What a group cannot do without and is not there, for itself or for what it uses."""
        names = set(self.chain(group))
        return [m for m in self.missing if m.required and m.group in names]

    def chain(self, group: str) -> list[str]:
        """Ids of a group and all groups that it uses, directly or not."""
        found: dict[str, None] = {}
        todo = [group]
        while todo:
            name = todo.pop()
            if name in found:
                continue
            found[name] = None
            todo += [c.group.id for c in self.choices.get(name, {}).values() if c.group is not None]
        return list(found)


# ----------------------------------------------------------------------------------------- groups


def make_groups(files: Iterable[RawFile]) -> dict[str, Group]:
    """Put raw frames into groups: by template and mode, or each for itself.

    Frames whose template is not in the header are of one group if they are of one night.
    """
    members: dict[tuple[object, ...], list[RawFile]] = {}
    for file in files:
        if file.product or not file.tag or file.tag in IGNORED:
            continue
        members.setdefault(template_key(file), []).append(file)
    groups: dict[str, Group] = {}
    for frames in members.values():
        group = make_group(frames, groups)
        groups[group.id] = group
    return groups


def template_key(file: RawFile) -> tuple[object, ...]:
    """Equal for frames of one group."""
    if file.tag in SINGLE:
        return (file.tag, file.name)
    return (file.tag, file.tpl_start or file.night, file.mode, file.curid)


def make_group(frames: Iterable[RawFile], taken: Mapping[str, Group] = MappingProxyType({})) -> Group:
    """A group of some frames, with an id that no other has."""
    ordered = tuple(sorted(frames, key=lambda f: (f.mjd, f.name)))
    first = ordered[0]
    time = first.date_obs if first.tag in SINGLE or not first.tpl_start else first.tpl_start
    name = "_".join(filter(None, (first.tag, time, first.mode)))
    name = re.sub(r"[^\w.+-]", "-", name)
    unique, number = name, 1
    while unique in taken:
        number += 1
        unique = f"{name}_{number}"
    return Group(unique, first.tag, ordered)


def shortage(group: Group, rules: Rules) -> str:
    """What a group has too little of to be used; empty if it is complete."""
    least = rules.minimum.get(group.tag, 1)
    if group.tag != "ARC":
        n = len(group.frames)
        return f"{n} of at least {least} frames" if n < least else ""
    lit = [lamp for frame in group.frames for lamp in frame.lamps]
    dark = [f"{lamp} ({lit.count(lamp)} of at least {least})" for lamp in rules.lamps if lit.count(lamp) < least]
    return f"too few exposures of {', '.join(dark)}" if dark else ""


# ----------------------------------------------------------------------------------------- choices


@dataclass(frozen=True)
class _Candidate:
    """Something that could be chosen."""

    group: Group | None
    files: tuple[RawFile, ...]
    source: str
    level: int
    #: settings that may differ do: with and without adaptive optics, or they are not known
    other: bool
    same_night: bool
    days: float
    reason: str

    @property
    def first(self) -> RawFile:
        return self.files[0] if self.group is None else self.group.frames[0]

    def choice(self, category: str) -> Choice:
        return Choice(category, self.group, self.files, self.source, self.level, self.reason)


_SOURCES = ("user", "archive", "rule")


def _rank(candidate: _Candidate, preference: str) -> tuple[object, ...]:
    """The best comes first."""
    source = _SOURCES.index(candidate.source)
    master = candidate.group is None
    kind = master != preference.startswith("master")
    near = (candidate.other, not candidate.same_night, abs(candidate.days), candidate.first.name)
    if source == 0:
        return (0, kind, candidate.level, *near)
    if preference in ("raw", "master"):
        return (1, kind, source, candidate.level, *near)
    return (1, source, candidate.level, kind, *near)


def interval(days: float) -> str:
    """A time between two exposures in words: ``45 min before``."""
    size = abs(days)
    text = f"{size * 1440:.0f} min" if size < 2 / 24 else f"{size * 24:.1f} h" if size < 2 else f"{size:.1f} d"
    return f"{text} {'before' if days < 0 else 'after'}"


def _value(file: RawFile, key: str) -> object:
    value = getattr(file, key)
    return None if value == "" else value


def _differs(wanted: RawFile, offered: RawFile, keys: Iterable[str]) -> str:
    """Which of some settings differ; what is unknown does not."""
    for key in keys:
        one, other = _value(wanted, key), _value(offered, key)
        if one is not None and other is not None and one != other:
            if key == "nominal":
                return f"{'nominal' if other else 'extended'} wavelength range"
            return {"mode": f"mode {other}", "field": f"{other}", "curid": f"read-out mode {other}"}[key]
    return ""


def product_sets(files: Iterable[RawFile]) -> list[tuple[RawFile, ...]]:
    """Products that belong together: those of single IFUs of one call; all others by themselves."""
    sets: dict[tuple[object, ...], list[RawFile]] = {}
    found: list[tuple[RawFile, ...]] = []
    for file in files:
        if not file.ifus:
            found.append((file,))
            continue
        key = (file.tag, file.path.parent, file.mode, file.curid, round(file.mjd, 5))
        sets.setdefault(key, []).append(file)
    for members in sets.values():
        parts: list[dict[tuple[int, ...], RawFile]] = []
        for file in sorted(members, key=lambda f: f.path.name):
            part = next((p for p in parts if file.ifus not in p), None)
            if part is None:
                parts.append(part := {})
            part[file.ifus] = file
        found += [tuple(part[ifus] for ifus in sorted(part)) for part in parts]
    return found


def associate(
    files: Sequence[RawFile],
    statics: Sequence[RawFile] = (),
    *,
    rules: Rules | None = None,
    archive: Archive | None = None,
    user: Sequence[Override] = (),
    extra: Sequence[RawFile] = (),
    wanted: Callable[[RawFile], bool] | None = None,
    tags: Sequence[str] = ("OBJECT",),
) -> Associations:
    """Find what belongs to exposures.

    Parameters
    ----------
    files : sequence of RawFile
        Raw exposures, and products of the archive or of one's own that may serve.
    statics : sequence of RawFile
        Static calibrations.
    rules : Rules, optional
    archive : Archive, optional
        What the archive says.
    user : sequence of Override
        What the user says, beside that in `rules`.
    extra : sequence of RawFile
        Files that are only taken where the user says so.
    wanted : callable, optional
        Which of the exposures of targets count; default: all.
    tags : sequence of str
        Tags of exposures for which calibrations are looked for.

    Returns
    -------
    Associations
    """
    search = _Search(files, statics, rules or Rules(), archive or Archive(), user, extra)
    return search.run(tags, wanted)


class _Search:
    def __init__(
        self,
        files: Sequence[RawFile],
        statics: Sequence[RawFile],
        rules: Rules,
        archive: Archive,
        user: Sequence[Override],
        extra: Sequence[RawFile],
    ) -> None:
        self.rules = rules
        self.archive = archive
        self.user = (*user, *rules.overrides)
        self.out = Associations()
        self.notes: dict[Path, str] = {}
        good = []
        for file in files:
            reason = file.note or rules.excludes(file)
            if reason:
                self.notes[file.path] = reason
            else:
                good.append(file)
        self.files = list(files)
        self.out.groups = make_groups(good)
        self.group_of = {f.path: g for g in self.out.groups.values() for f in g.frames}
        self.pool: dict[str, list[Group]] = {}
        self.short: dict[str, list[tuple[Group, str]]] = {}
        for group in self.out.groups.values():
            lack = shortage(group, rules)
            if lack:
                self.short.setdefault(group.tag, []).append((group, lack))
                self.notes.update({f.path: f"its group has {lack}" for f in group.frames})
            else:
                self.pool.setdefault(group.tag, []).append(group)
        for groups in self.pool.values():
            groups.sort(key=lambda g: (g.mjd, g.id))
        self.masters: dict[str, list[tuple[RawFile, ...]]] = {}
        self.statics: dict[str, list[tuple[RawFile, ...]]] = {}
        # a folder of static calibrations may be that of the raw frames
        static_paths = {f.path for f in statics}
        for sets, source in (
            (self.masters, [f for f in good if f.product and f.path not in static_paths]),
            (self.statics, [f for f in statics if not rules.excludes(f)]),
        ):
            for members in product_sets(source):
                sets.setdefault(members[0].tag, []).append(members)
        #: by path, name in the archive, and name of the file
        self.index: dict[str, RawFile] = {}
        self.by_path = {f.path: f for f in (*extra, *statics, *good)}
        for file in (*good, *statics, *extra):
            for name in (str(file.path), file.name, archive_stem(file.path.name)):
                self.index.setdefault(name, file)
        #: numbers of overrides by the frames that they name, and of those with wildcards or without
        self.special: dict[str, list[int]] = {}
        self.general: list[int] = []
        self.named_by: dict[Override, list[RawFile]] = {}
        for i, override in enumerate(self.user):
            if not override.frames or any(set("*?[") & set(name) for name in override.frames):
                self.general.append(i)
            for name in override.frames:
                self.special.setdefault(name, []).append(i)

    # ------------------------------------------------------------------------------ the walk

    def run(self, tags: Sequence[str], wanted: Callable[[RawFile], bool] | None) -> Associations:
        starts = [g for tag in tags for g in self.pool.get(tag, [])]
        todo = sorted(starts, key=lambda g: (g.mjd, g.id), reverse=True)
        todo = [g for g in todo if wanted is None or g.frames[0].tag not in ("OBJECT", "SKY") or wanted(g.frames[0])]
        asked = {g.id for g in todo}
        for group in starts:
            if group.id not in asked:
                self.notes.update({f.path: "not asked for" for f in group.frames})
        while todo:
            group = todo.pop()
            if group.id in self.out.choices:
                continue
            choices = self.out.choices[group.id] = {}
            for category, required in NEEDS.get(group.tag, {}).items():
                if not self._applies(category, group):
                    continue
                found = self._choose(category, group, choices)
                if isinstance(found, Choice):
                    choices[category] = found
                    if found.group is not None and found.group.id not in self.out.choices:
                        self.out.groups.setdefault(found.group.id, found.group)
                        todo.append(found.group)
                elif found:
                    self.out.missing.append(Missing(group.id, category, required, found))
        self._find_unused()
        return self.out

    def _applies(self, category: str, group: Group) -> bool:
        """Whether it is of use at all."""
        if category == "MASTER_DARK":
            return self.rules.use_darks
        if category == "VIGNETTING_MASK":
            return group.mjd < VIGNETTED_BEFORE
        if category == "RAMAN_LINES":
            return group.frames[0].ao
        return category != "SKY" or self.rules.sky_field == "auto"

    def _choose(self, category: str, group: Group, so_far: Mapping[str, Choice]) -> Choice | str:
        """The best of a category, or why there is none; an empty text if the user wants none."""
        candidates, decided = self._users(category, group)
        if candidates and self._is_weak(category, group):
            finished = [c for c in [*self._named(category, group), *self._by_rule(category, group)] if c.group is None]
            candidates = finished or candidates
        if candidates and category == "ILLUM":
            chosen = self._illumination(group, candidates)
            assert chosen is not None
            return chosen.choice(category)
        if candidates:
            return min(candidates, key=lambda c: _rank(c, self.rules.preference_for(category))).choice(category)
        if decided is not None:
            return decided
        if category in ("GEOMETRY_TABLE", "ASTROMETRY_WCS"):
            return self._geometry(category, group, so_far)
        if category in _BY_USER:
            return ""
        if category in STATIC:
            return self._static(category, group)
        candidates = self._named(category, group)
        leader = so_far.get(_FOLLOWS.get(category, ""))
        if leader is not None and (leader.group is not None or all(c.group is not None for c in candidates)):
            followed = self._follow(category, group, leader)
            rivals = self._by_rule(category, group) if leader.source == "rule" else []
            better = any(c.level < leader.level and bool(c.group) == bool(leader.group) for c in rivals)
            if followed is not None and not better:
                return followed
        if category == "ILLUM":
            found = self._illumination(group, [c for c in candidates if c.group is not None])
        elif category == "SKY":
            found = self._sky(group, candidates)
        else:
            candidates += self._by_rule(category, group)
            found = min(candidates, key=lambda c: _rank(c, self.rules.preference_for(category)), default=None)
            if found is None:
                found = self._last_resort(category, group)
        return self._why_none(category, group) if found is None else found.choice(category)

    # ------------------------------------------------------------------------------ candidates

    def _candidate(
        self, category: str, group: Group, offered: Group | tuple[RawFile, ...], source: str, *, free: bool = False
    ) -> _Candidate | None:
        """Something in the eyes of a group; None if it does not fit, or, unless `free`, if it is too far away."""
        first = offered.frames[0] if isinstance(offered, Group) else offered[0]
        target = group.frames[0]
        mjd = offered.mjd if isinstance(offered, Group) else first.mjd
        differs = _differs(target, first, self.rules.keys(category, KEYS.get(category, ())))
        if differs and not free:
            return None
        days = mjd - group.mjd if mjd else 0.0
        same_night = bool(mjd) and first.night == group.night
        level = self.rules.level(MADE_OF.get(category, category), abs(days), same_night)
        static = category in STATIC or (not mjd and category in ("GEOMETRY_TABLE", "ASTROMETRY_WCS"))
        if static or not mjd:
            level = 0 if static else 3
        elif level is None:
            if not free:
                return None
            level = 3
        other = bool(KEYS.get(category)) and "curid" not in KEYS[category][:1] and _value(first, "mode") != target.mode
        words = [f"{'same night, ' if same_night else ''}{interval(days)}"] if mjd and not static else []
        if differs:
            words.append(differs)
            level = 3
        elif other:
            words.append(f"mode {first.mode}" if first.mode else "its mode is not in its header")
        if isinstance(offered, Group):
            n = len(offered.frames)
            if offered.tag not in SINGLE:
                nexp = max(f.nexp for f in offered.frames)
                words.append(f"{n} of {nexp} frames" if n < nexp else f"{n} frames")
            return _Candidate(offered, (), source, level, other, same_night, days, ", ".join(words))
        words.append("static calibration" if static else "finished" if mjd else "finished, of unknown date")
        return _Candidate(None, offered, source, level, other, same_night, days, ", ".join(words))

    def _near(self, tag: str, group: Group) -> list[Group]:
        """Complete groups of raw frames within the widest window of time."""
        there = self.pool.get(tag, [])
        # a night is shorter than that
        limit = max(1.5, self.rules.windows[tag][-1])
        first = bisect_left(there, group.mjd - limit, key=lambda g: g.mjd)
        return there[first : bisect_right(there, group.mjd + limit, key=lambda g: g.mjd)]

    def _by_rule(self, category: str, group: Group) -> list[_Candidate]:
        tag = MADE_OF.get(category)
        offered: list[Group | tuple[RawFile, ...]] = [
            *(self._near(tag, group) if tag else []), *self.masters.get(category, [])
        ]  # fmt: skip
        candidates = (self._candidate(category, group, o, "rule") for o in offered)
        return [c for c in candidates if c is not None and c.group is not group]

    def _selections(self, group: Group) -> list[Selection]:
        for frame in group.frames:
            found = self.archive.needs_of(frame)
            if found:
                return found
        return []

    def _named(self, category: str, group: Group) -> list[_Candidate]:
        """What the archive names for a group."""
        candidates: list[_Candidate] = []
        for selection in self._selections(group):
            here = [self.index[name] for name in selection.names if name in self.index]
            tag = here[0].tag if here else selection.category
            if tag not in (category, MADE_OF.get(category, category)):
                continue
            here = [f for f in here if f.tag == tag]
            what = f"{group.id}: the archive names {len(selection.names)} {tag} for it"
            if not here:
                self._warn(f"{what}, none of them is there; others are chosen by the rules")
                continue
            if here[0].product:
                candidates += [self._archived(category, group, members, selection) for members in product_sets(here)]
                continue
            for frames in [[f] for f in here] if tag in SINGLE else [here]:
                chosen = self._as_group(frames)
                lack = shortage(chosen, self.rules)
                if lack:
                    self._warn(f"{what}, but there are {lack}; others are chosen by the rules")
                    continue
                if len(here) < len(selection.names):
                    self._warn(f"{what}, {len(here)} of them are there")
                candidates.append(self._archived(category, group, chosen, selection))
        return candidates

    def _archived(
        self, category: str, group: Group, offered: Group | tuple[RawFile, ...], selection: Selection
    ) -> _Candidate:
        found = self._candidate(category, group, offered, "archive", free=True)
        assert found is not None
        level = found.level
        if selection.match == "calib_plan":
            level = 0
        elif selection.match and selection.match.upper() != "N/A":
            level = max(1, level)
        words = "named by the archive" if selection.certified else "named by the archive, provisionally"
        return replace(found, level=level, reason=f"{words}, {found.reason}")

    def _as_group(self, frames: Sequence[RawFile]) -> Group:
        """The group of exactly these frames, perhaps a new one."""
        paths = {f.path for f in frames}
        group = self.group_of.get(frames[0].path)
        if group is not None and {f.path for f in group.frames} == paths:
            return group
        for other in self.out.groups.values():
            if {f.path for f in other.frames} == paths:
                return other
        made = make_group(frames, self.out.groups)
        self.out.groups[made.id] = made
        return made

    def _users(self, category: str, group: Group) -> tuple[list[_Candidate], str | None]:
        """What the user wants for a group; and, if that is nothing, why, with an empty text if it is on purpose."""
        override = self._override(category, group)
        if override is None:
            return [], None
        if not override.files:
            return [], ""
        tags = (category, MADE_OF.get(category, category))
        here = [f for f in self._files_of(override) if f.tag in tags]
        candidates: list[_Candidate | None] = [
            self._candidate(category, group, members, "user", free=True)
            for members in product_sets(f for f in here if f.product)
        ]
        parts: dict[tuple[object, ...], list[RawFile]] = {}
        for file in here:
            if not file.product:
                parts.setdefault(template_key(file), []).append(file)
        candidates += [
            self._candidate(category, group, self._as_group(frames), "user", free=True) for frames in parts.values()
        ]
        found = [c for c in candidates if c is not None and c.group is not group]
        if found:
            return [_by_user(c, override, self.rules) for c in found], None
        self._warn(f"{group.id}: {override.origin}: no {category} in {', '.join(override.files)}; chosen by the rules")
        return [], None

    def _override(self, category: str, group: Group) -> Override | None:
        """The first that is about a category of a group."""
        numbers = set(self.general)
        for frame in group.frames:
            for name in (str(frame.path), frame.name, frame.path.name):
                numbers.update(self.special.get(name, ()))
        made_of = MADE_OF.get(category, "")
        fits = (self.user[i] for i in sorted(numbers) if self.user[i].applies(group.frames, category, made_of))
        return next(fits, None)

    def _is_weak(self, category: str, group: Group) -> bool:
        override = self._override(category, group)
        return override is not None and override.weak and self.rules.preference_for(category) == "master"

    def _files_of(self, override: Override) -> list[RawFile]:
        """Files that an override names."""
        if override not in self.named_by:
            exact = [self.index[name] for name in override.files if name in self.index]
            if len(exact) == len(override.files):
                self.named_by[override] = exact
            else:
                self.named_by[override] = [f for f in self.by_path.values() if override.names(f)]
        return self.named_by[override]

    def _follow(self, category: str, group: Group, leader: Choice) -> Choice | None:
        """The product of the same call as another one."""
        if leader.group is not None:
            if _differs(group.frames[0], leader.group.frames[0], self.rules.keys(category, KEYS[category])):
                return None
            return Choice(category, leader.group, (), leader.source, leader.level, leader.reason)
        made = leader.files[0]
        for members in (*self.masters.get(category, []), *self.statics.get(category, [])):
            first = members[0]
            same = first.path.parent == made.path.parent or first.tpl_start == made.tpl_start
            if made.mjd and same and abs(first.mjd - made.mjd) < 0.01 and first.mode == made.mode:
                if _differs(group.frames[0], first, self.rules.keys(category, KEYS[category])):
                    continue
                return Choice(category, None, members, leader.source, leader.level, leader.reason)
        return None

    def _last_resort(self, category: str, group: Group) -> _Candidate | None:
        """A static calibration where there should be one of the night."""
        best: tuple[tuple[bool, str], tuple[RawFile, ...]] | None = None
        target = group.frames[0]
        for members in self.statics.get(category, []):
            first = members[0]
            keys = ("nominal", "field") if category == "LSF_PROFILE" else KEYS.get(category, ())
            if _differs(target, first, keys) or not (first.mode or not keys):
                continue
            rank = (first.mode != target.mode, first.name)
            if best is None or rank < best[0]:
                best = rank, members
        if best is None:
            return None
        first = best[1][0]
        words = f"static calibration{f' of mode {first.mode}' if first.mode != target.mode else ''}, none of the night"
        return _Candidate(None, best[1], "rule", 3, best[0][0], False, 0.0, words)

    # ------------------------------------------------------------------------------ special rules

    def _illumination(self, group: Group, named: Sequence[_Candidate]) -> _Candidate | None:
        """Of the same night; within two hours the one of the most similar temperature, else the nearest in time."""
        offered, source = list(named), "rule"
        if named:
            source = named[0].source
        else:
            found = (self._candidate("ILLUM", group, o, "rule") for o in self._near("ILLUM", group))
            offered = [c for c in found if c is not None and c.same_night]
        if not offered:
            return None
        rules, target = self.rules, group.frames[0]

        def difference(candidate: _Candidate) -> float | None:
            temperature = candidate.first.temperature
            if temperature is None or target.temperature is None:
                return None
            return abs(temperature - target.temperature)

        def rank(candidate: _Candidate) -> tuple[float, float, str]:
            dt = difference(candidate)
            return (1e9 if dt is None else round(dt, 3), abs(candidate.days), candidate.first.name)

        near = [c for c in offered if abs(c.days) * 24 <= rules.illum_hours]
        best = min(near, key=rank) if near else min(offered, key=lambda c: (abs(c.days), c.first.name))
        dt = difference(best)
        if source == "rule" and dt is not None and dt > rules.illum_temperature:
            return None
        if dt is None:
            words, level = "temperature not known", 2
        else:
            words, level = f"{dt:.2f} deg of temperature apart", 0 if near else 1
        level = level if source == "rule" else best.level
        return replace(best, source=source, level=level, reason=f"{best.reason}, {words}")

    def _sky(self, group: Group, named: Sequence[_Candidate]) -> _Candidate | None:
        """The nearest of the same night, first of the same block; of another night only of the same block."""
        found = []
        for offered in self._near("SKY", group):
            candidate = self._candidate("SKY", group, offered, "rule")
            if candidate is None:
                continue
            same = _same_block(group.frames[0], offered.frames[0])
            if not same and not candidate.same_night:
                continue
            level = 0 if same and candidate.same_night else 1 if candidate.same_night else 3
            words = f"{candidate.reason}, {'of its own' if same else 'of another'} block"
            found.append(replace(candidate, level=level, reason=words))
        return min([*named, *found], key=lambda c: _rank(c, "raw"), default=None)

    def _static(self, category: str, group: Group) -> Choice | str:
        named = [c for c in self._named(category, group) if c.group is None]
        if named:
            return min(named, key=lambda c: _rank(c, "master")).choice(category)
        offered = [*self.statics.get(category, [])] or [*self.masters.get(category, [])]
        if not offered:
            return "no such static calibration"
        # of several that of its time, if they have one
        best = min(offered, key=lambda m: (not m[0].mjd, abs(m[0].mjd - group.mjd), str(m[0].path)))
        more = f", one of {len(offered)}" if len(offered) > 1 else ""
        return Choice(category, None, best, "rule", 0, f"static calibration{more}")

    def _geometry(self, category: str, group: Group, so_far: Mapping[str, Choice]) -> Choice | str:
        """Geometry and astrometry, which must fit each other."""
        geometry, astrometry = self._pair(group)
        if category == "GEOMETRY_TABLE":
            return geometry if geometry is not None else "no GEOMETRY_TABLE"
        taken = so_far.get("GEOMETRY_TABLE")
        if taken is not None and taken.source == "user":
            beside = None if self.rules.astrometry == "own" else self._beside(taken, group)
            if beside is not None:
                return beside
            if astrometry is not None and astrometry.group is None:
                return _unmatched(astrometry, f"the geometry is {taken.files[0].path}")
        return self._why_none(category, group) if astrometry is None else astrometry

    def _beside(self, geometry: Choice, group: Group) -> Choice | None:
        """The astrometric solution of the field in the folder of a geometry."""
        for file in sorted(self.by_path.values(), key=lambda f: str(f.path)):
            if file.tag != "ASTROMETRY_WCS" or file.path.parent != geometry.files[0].path.parent:
                continue
            if not _differs(group.frames[0], file, KEYS["ASTROMETRY_WCS"]):
                return Choice("ASTROMETRY_WCS", None, (file,), "rule", 0, "beside the geometry")
        return None

    def _pair(self, group: Group) -> tuple[Choice | None, Choice | None]:
        want = self.rules.astrometry
        own = min(
            (c for c in self._by_rule("ASTROMETRY_WCS", group) if c.group is not None),
            key=lambda c: _rank(c, "raw"), default=None,
        )  # fmt: skip
        own_choice = None if own is None else own.choice("ASTROMETRY_WCS")
        fixed = [self._fixed(c, group, self.statics) for c in ("GEOMETRY_TABLE", "ASTROMETRY_WCS")]
        archived = [self._fixed(c, group, self.masters) for c in ("GEOMETRY_TABLE", "ASTROMETRY_WCS")]
        named_geometry = [c.choice("GEOMETRY_TABLE") for c in self._named("GEOMETRY_TABLE", group)]
        named_wcs = sorted(self._named("ASTROMETRY_WCS", group), key=lambda c: _rank(c, self.rules.preference))
        named = [c.choice("ASTROMETRY_WCS") for c in named_wcs]
        geometry = named_geometry[0] if named_geometry else None
        if want == "static":
            return _matched(fixed[0] or archived[0], fixed[1])
        if want == "archive":
            files = [c for c in named if c.group is None]
            return _matched(geometry or archived[0] or fixed[0], files[0] if files else archived[1])
        if want == "own":
            raw = [c for c in named if c.group is not None]
            return geometry or fixed[0] or archived[0], raw[0] if raw else own_choice
        if named:
            return _matched(geometry or archived[0] or fixed[0], named[0])
        if geometry is not None:
            there = [w for w in (archived[1], fixed[1]) if w is not None and _together(geometry, w)]
            return _matched(geometry, there[0] if there else own_choice or archived[1] or fixed[1])
        for pair in (archived, fixed):
            if pair[0] is not None and pair[1] is not None and _together(pair[0], pair[1]):
                return pair[0], pair[1]
        geometry = fixed[0] or archived[0]
        return _matched(geometry, own_choice or fixed[1] or archived[1])

    def _fixed(
        self, category: str, group: Group, source: Mapping[str, list[tuple[RawFile, ...]]]
    ) -> Choice | None:
        """The file of the field and, if they have dates, nearest in time."""
        offered = [
            m for m in source.get(category, [])
            if not _differs(group.frames[0], m[0], KEYS.get(category, ()))
        ]  # fmt: skip
        if not offered:
            return None
        mode = group.frames[0]
        best = min(
            offered,
            key=lambda m: (m[0].field != mode.field, not m[0].mjd, abs(m[0].mjd - group.mjd), str(m[0].path)),
        )
        if source is self.statics:
            return Choice(category, None, best, "rule", 0, "static calibration")
        days = best[0].mjd - group.mjd
        level = self.rules.level("ASTROMETRY", abs(days), False) if best[0].mjd else 1
        words = f"finished, {interval(days)}" if best[0].mjd else "finished, of unknown date"
        return Choice(category, None, best, "rule", 3 if level is None else level, words)

    # ------------------------------------------------------------------------------ what is left

    def _warn(self, text: str) -> None:
        if text not in self.out.warnings:
            self.out.warnings.append(text)

    def _why_none(self, category: str, group: Group) -> str:
        """Why there is nothing of a category for a group."""
        tag = MADE_OF.get(category, category)
        target = group.frames[0]
        there = self.pool.get(tag, [])
        if category == "ILLUM":
            tonight = [g for g in there if g.night == group.night and not _differs(target, g.frames[0], ("field",))]
            if tonight:
                return f"those of the night are more than {self.rules.illum_temperature:g} deg warmer or colder"
            return f"no ILLUM of the night and of {target.field}"
        if category == "SKY":
            return f"no SKY of mode {group.mode} in that night or block: the sky is taken from the exposure itself"
        keys = self.rules.keys(category, KEYS.get(category, ()))
        fit = [g for g in there if not _differs(target, g.frames[0], keys)]
        settings = {"mode": f"mode {group.mode}", "field": target.field, "curid": f"read-out mode {target.curid}"}
        settings["nominal"] = f"{'nominal' if target.nominal else 'extended'} wavelength range"
        what = f"{tag} of {', '.join(settings[k] for k in keys)}" if keys else tag
        if fit:
            nearest = min(fit, key=lambda g: abs(g.mjd - group.mjd))
            limit = self.rules.windows[tag][-1]
            return f"no {what} within {limit:g} d; the nearest is {interval(nearest.mjd - group.mjd)}: {nearest.id}"
        short = [(g, why) for g, why in self.short.get(tag, []) if not _differs(target, g.frames[0], keys)]
        if short:
            nearest, why = min(short, key=lambda pair: abs(pair[0].mjd - group.mjd))
            return f"no complete {what}; {nearest.id} has {why}"
        return f"no {what}" + (f"; there are {len(there)} of others" if there else "")

    def _find_unused(self) -> None:
        used = {f.path for name in self.out.choices for f in self.out.groups[name].frames}
        used |= {f.path for choices in self.out.choices.values() for c in choices.values() for f in c.files}
        tags = {g.tag for g in (self.out.groups[name] for name in self.out.choices)}
        needed = {category for tag in tags for category in NEEDS.get(tag, {})}
        needed |= {MADE_OF[category] for category in needed if category in MADE_OF}
        for file in self.files:
            if file.path in used:
                continue
            reason = self.notes.get(file.path, "")
            if reason:
                pass
            elif file.tag == "DARK" and not self.rules.use_darks:
                reason = "darks are not asked for"
            elif file.tag == "SKY" and self.rules.sky_field == "object":
                reason = "the sky is taken from the exposures themselves"
            elif file.tag not in needed:
                reason = "nothing needs it" if file.tag in TAGS else f"unknown category {file.tag}"
            else:
                reason = self._why_unused(file)
            self.out.unused.append((file, reason))

    def _why_unused(self, file: RawFile) -> str:
        tag = file.tag
        users = [
            (category, self.out.groups[name]) for name in self.out.choices
            for category in NEEDS.get(self.out.groups[name].tag, {}) if tag in (category, MADE_OF.get(category, ""))
        ]  # fmt: skip
        differs = [_differs(g.frames[0], file, self.rules.keys(c, KEYS.get(c, ()))) for c, g in users]
        if all(differs):
            return f"nothing that is reduced has its settings: {differs[0]}"
        return "others fit better"


def _by_user(candidate: _Candidate, override: Override, rules: Rules) -> _Candidate:
    lack = "" if candidate.group is None else shortage(candidate.group, rules)
    words = ", ".join(filter(None, (override.origin, candidate.reason, lack and f"has {lack}")))
    return replace(candidate, source="user", level=3 if lack else candidate.level, reason=words)


def _same_block(one: RawFile, other: RawFile) -> bool:
    if one.ob_id is not None and other.ob_id is not None:
        return one.ob_id == other.ob_id
    return bool(one.ob_name) and one.ob_name == other.ob_name


def _together(geometry: Choice, astrometry: Choice) -> bool:
    """Whether two files come from one place."""
    return geometry.frames[0].path.parent == astrometry.frames[0].path.parent


def _unmatched(astrometry: Choice, why: str) -> Choice:
    words = f"{astrometry.reason}; perhaps no matching pair: {why}"
    return Choice("ASTROMETRY_WCS", None, astrometry.files, astrometry.source, 3, words)


def _matched(geometry: Choice | None, astrometry: Choice | None) -> tuple[Choice | None, Choice | None]:
    """Tell if the two do not come from one place; what is reduced with the geometry always fits it."""
    if geometry is None or astrometry is None or astrometry.group is not None or _together(geometry, astrometry):
        return geometry, astrometry
    if geometry.source == astrometry.source == "archive":
        return geometry, astrometry
    return geometry, _unmatched(astrometry, f"the geometry is {geometry.files[0].path}")


def iter_choices(associations: Associations) -> Iterator[tuple[Group, Choice]]:
    """All choices, with the groups that they are for, in the order of time."""
    groups = sorted((associations.groups[name] for name in associations.choices), key=lambda g: (g.mjd, g.id))
    for group in groups:
        for choice in associations.choices[group.id].values():
            yield group, choice
