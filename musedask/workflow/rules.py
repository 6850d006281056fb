"""How calibrations are chosen: windows of time and their quality, numbers of frames, what the user wants otherwise."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import date
from fnmatch import fnmatchcase
from typing import Any

from ..errors import InputError
from ..tags import TAGS
from .classify import RawFile

#: MJD before which the field was vignetted (2017-03-11)
VIGNETTED_BEFORE = 57823.0

#: what is preferred, raw frames or finished calibrations; the latter two within each level of quality
PREFERENCES = ("raw", "master", "raw_per_quality_level", "master_per_quality_level")
#: where geometry and astrometry come from
ASTROMETRY = ("auto", "static", "archive", "own")
#: distances in time of the levels 0 to 3, by tag of the raw frames [d]; same night is always 0
WINDOWS: Mapping[str, tuple[float, float, float, float]] = {
    "BIAS": (1, 3, 7, 30),
    "DARK": (31, 62, 92, 365),
    "FLAT": (1, 3, 7, 30),
    "ARC": (1, 3, 7, 30),
    "SKYFLAT": (7, 14, 30, 90),
    "ILLUM": (0.5, 0.5, 0.5, 1),
    "STD": (1, 5, 14, 90),
    "ASTROMETRY": (31, 92, 365, 3650),
    "SKY": (0.5, 0.5, 0.5, 1),
    "GEOMETRY_TABLE": (92, 365, 730, 3650),
}
#: least numbers of frames; of ARC for each lamp
MINIMUM: Mapping[str, int] = {"BIAS": 3, "DARK": 3, "FLAT": 3, "SKYFLAT": 3, "ARC": 1, "MASK": 50}


def _matches(file: RawFile, patterns: Iterable[str]) -> bool:
    texts = (file.name, file.path.name, str(file.path))
    return any(fnmatchcase(text, pattern) for pattern in patterns for text in texts)


@dataclass(frozen=True)
class Override:
    """Another choice than that of the rules.

    Attributes
    ----------
    category : str
        What is chosen: a category (``MASTER_FLAT``), or the tag of raw frames (``FLAT``) for all that is made of them.
    files : tuple of str
        Names, file names or paths, with wildcards; none if the category is to be left out.
    frames : tuple of str
        For which frames: names, file names or paths, with wildcards; empty: all.
    obs : tuple of str
        For which observing blocks: names or numbers, with wildcards; empty: all.
    tags : tuple of str
        For frames of which tags; empty: all.
    first, last : date or None
        For which nights.
    origin : str
        Who says so.
    weak : bool
        Whether finished calibrations come first where these are preferred.
    """

    category: str
    files: tuple[str, ...]
    frames: tuple[str, ...] = ()
    obs: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    first: date | None = None
    last: date | None = None
    origin: str = "the user's choice"
    weak: bool = False

    def applies(self, frames: Iterable[RawFile], category: str, made_of: str) -> bool:
        """Whether it is about a category of one of these frames."""
        return self.category in (category, made_of) and any(self._is_for(frame) for frame in frames)

    def _is_for(self, frame: RawFile) -> bool:
        if self.tags and frame.tag not in self.tags:
            return False
        if self.frames and not _matches(frame, self.frames):
            return False
        blocks = (frame.ob_name, str(frame.ob_id))
        if self.obs and not any(fnmatchcase(block, pattern) for pattern in self.obs for block in blocks):
            return False
        return (self.first is None or self.first <= frame.night) and (self.last is None or frame.night <= self.last)

    def names(self, file: RawFile) -> bool:
        """Whether a file is one of those that it chooses."""
        return _matches(file, self.files)


@dataclass(frozen=True)
class Exclusion:
    """Files that are not used: those that fit all that is said here.

    Attributes
    ----------
    files : tuple of str
        Names, file names or paths, with wildcards.
    nights : tuple of date
    templates : tuple of str
        ``ESO TPL ID`` or ``ESO TPL START``, with wildcards.
    tags : tuple of str
    """

    files: tuple[str, ...] = ()
    nights: tuple[date, ...] = ()
    templates: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    def fits(self, file: RawFile) -> bool:
        """Whether a file is meant."""
        return not (
            (self.files and not _matches(file, self.files))
            or (self.nights and file.night not in self.nights)
            or (self.tags and file.tag not in self.tags)
            or (
                self.templates
                and not any(fnmatchcase(t, p) for p in self.templates for t in (file.template, file.tpl_start))
            )
        )


@dataclass(frozen=True)
class Rules:
    """How calibrations are chosen.

    Attributes
    ----------
    preference : str
        One of `PREFERENCES`.
    preferences : mapping of str to str
        The same for single categories.  Standard stars are reduced rather than taken from the archive, unless
        something is said of them here.
    use_darks : bool
    sky_field : str
        ``auto``: the sky of an exposure of the sky if there is one; ``object``: that of the exposure itself.
    astrometry : str
        One of `ASTROMETRY`.
    strict : bool
        Whether all calibrations but bias, dark and geometry must be of the very mode.
    windows : mapping of str to tuple of float
        See `WINDOWS`.
    minimum : mapping of str to int
        See `MINIMUM`.
    lamps : tuple of str
        Arc lamps that must be there.
    illum_hours : float
        Within which the temperature decides which ILLUM is taken.
    illum_temperature : float
        Difference beyond which there is none [deg].
    exclude : tuple of Exclusion
    overrides : tuple of Override
        The first that is about a group and a category counts.
    """

    preference: str = "raw_per_quality_level"
    preferences: Mapping[str, str] = field(default_factory=dict)
    use_darks: bool = False
    sky_field: str = "auto"
    astrometry: str = "auto"
    strict: bool = False
    windows: Mapping[str, Sequence[float]] = field(default_factory=lambda: dict(WINDOWS))
    minimum: Mapping[str, int] = field(default_factory=lambda: dict(MINIMUM))
    lamps: tuple[str, ...] = ("Ne", "Xe", "HgCd")
    illum_hours: float = 2.0
    illum_temperature: float = 1.0
    exclude: tuple[Exclusion, ...] = ()
    overrides: tuple[Override, ...] = ()

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], **more: Any) -> Rules:
        """Rules from plain values, as they are in configurations.

        Parameters
        ----------
        values : mapping
            Fields by their names.  ``windows`` and ``minimum`` change single entries.  ``exclude`` is a list of
            patterns of files, or of mappings with ``files``, ``nights``, ``templates``, ``tags``.  ``overrides`` is a
            list of mappings with ``category``, ``files``, and ``frames``, ``obs``, ``tags``, ``first``, ``last``.
        **more
            Fields that take precedence.

        Raises
        ------
        InputError
            If a name or a value is none.
        """
        known = {f.name for f in fields(cls)}
        where = "association"
        result: dict[str, Any] = {}
        for key, value in {**values, **more}.items():
            _check_name(f"{where}.{key}", key, known)
            if key in ("windows", "minimum"):
                result[key] = _changed(f"{where}.{key}", WINDOWS if key == "windows" else MINIMUM, value)
            elif key == "preferences":
                result[key] = dict(_mapping(f"{where}.{key}", value))
            elif key == "lamps":
                result[key] = _texts(f"{where}.{key}", value)
            elif key in ("exclude", "overrides"):
                items = value if isinstance(value, list | tuple) else [value]
                make = _exclusion if key == "exclude" else _override
                result[key] = tuple(make(f"{where}.{key}[{i}]", item) for i, item in enumerate(items))
            elif key in ("use_darks", "strict"):
                if not isinstance(value, bool):
                    raise InputError(f"{where}.{key}: {value!r} found, expected true or false")
                result[key] = value
            elif key in ("illum_hours", "illum_temperature"):
                if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
                    raise InputError(f"{where}.{key}: {value!r} found, expected a number, 0 or more")
                result[key] = float(value)
            else:
                result[key] = value
        rules = cls(**result)
        for name, value, allowed in (
            ("preference", rules.preference, PREFERENCES),
            *((f"preferences.{category}", value, PREFERENCES) for category, value in rules.preferences.items()),
            ("sky_field", rules.sky_field, ("auto", "object")),
            ("astrometry", rules.astrometry, ASTROMETRY),
        ):
            if value not in allowed:
                raise InputError(f"{where}.{name}: {value!r} found, expected one of {', '.join(allowed)}")
        return rules

    def preference_for(self, category: str) -> str:
        """Whether raw frames or finished calibrations are preferred."""
        if category in self.preferences:
            return self.preferences[category]
        standard = category in ("STD_RESPONSE", "STD_TELLURIC")
        return "raw" if standard and self.preference == "master" else self.preference

    def keys(self, category: str, keys: Sequence[str]) -> tuple[str, ...]:
        """Settings that must be equal, out of those that must be by the rules of the observatory."""
        if self.strict and keys and "curid" not in keys[:1]:
            return ("mode", *(key for key in keys if key not in ("mode", "nominal", "field")))
        return tuple(keys)

    def level(self, tag: str, days: float, same_night: bool) -> int | None:
        """Level of quality by distance in time; None if it is too far away."""
        if same_night:
            return 0
        return next((i for i, limit in enumerate(self.windows.get(tag, ())) if days <= limit), None)

    def excludes(self, file: RawFile) -> str:
        """Why a file is excluded; empty if it is not."""
        return "excluded by the user" if any(e.fits(file) for e in self.exclude) else ""


# ----------------------------------------------------------------------------------------- plain values


def _check_name(where: str, name: str, known: Iterable[str]) -> None:
    names = sorted(known)
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f", perhaps {near[0]}" if near else f", expected one of {', '.join(names)}"
        raise InputError(f"{where}: no such key{hint}")


def _mapping(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: {value!r} found, expected keys and values")
    return value


def _texts(where: str, value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, str | int) else value
    if not isinstance(values, list | tuple) or not all(isinstance(v, str | int) for v in values):
        raise InputError(f"{where}: {value!r} found, expected text or a list of texts")
    return tuple(str(v) for v in values)


def _date(where: str, value: Any) -> date:
    if isinstance(value, date):
        return value
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        raise InputError(f"{where}: {value!r} found, expected a date like 2014-12-08") from None


def _changed(where: str, defaults: Mapping[str, Any], value: Any) -> dict[str, Any]:
    result = dict(defaults)
    for tag, new in _mapping(where, value).items():
        _check_name(f"{where}.{tag}", tag, defaults)
        if isinstance(defaults[tag], int):
            if isinstance(new, bool) or not isinstance(new, int) or new < 1:
                raise InputError(f"{where}.{tag}: {new!r} found, expected a whole number, 1 or more")
            result[tag] = new
            continue
        numbers = list(new) if isinstance(new, list | tuple) else []
        good = all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
        if len(numbers) != 4 or not good or sorted(numbers) != numbers or numbers[0] < 0:
            raise InputError(f"{where}.{tag}: {new!r} found, expected four growing numbers of days, one for each level")
        result[tag] = tuple(float(n) for n in numbers)
    return result


def _tags(where: str, value: Any) -> tuple[str, ...]:
    tags = _texts(where, value)
    for tag in tags:
        _check_name(f"{where}: {tag}", tag, TAGS)
    return tags


def _exclusion(where: str, value: Any) -> Exclusion:
    if isinstance(value, str):
        return Exclusion(files=(value,))
    values = _mapping(where, value)
    for key in values:
        _check_name(f"{where}.{key}", key, ("files", "nights", "templates", "tags"))
    if not any(values.values()):
        raise InputError(f"{where}: nothing found, expected some of files, nights, templates, tags")
    nights = values.get("nights", ())
    return Exclusion(
        _texts(f"{where}.files", values.get("files", ())),
        tuple(_date(f"{where}.nights", v) for v in (nights if isinstance(nights, list | tuple) else [nights])),
        _texts(f"{where}.templates", values.get("templates", ())),
        _tags(f"{where}.tags", values.get("tags", ())),
    )


def _override(where: str, value: Any) -> Override:
    values = _mapping(where, value)
    for key in values:
        _check_name(f"{where}.{key}", key, (f.name for f in fields(Override) if f.name not in ("origin", "weak")))
    category = values.get("category")
    if not isinstance(category, str) or category not in TAGS:
        near = difflib.get_close_matches(str(category), TAGS, 1)
        hint = f", perhaps {near[0]}" if near else ", expected a tag of frames or a category of products"
        raise InputError(f"{where}.category: {category!r} found{hint}")
    files = values.get("files")
    return Override(
        category,
        () if files is None else _texts(f"{where}.files", files),
        _texts(f"{where}.frames", values.get("frames", ())),
        _texts(f"{where}.obs", values.get("obs", ())),
        _tags(f"{where}.tags", values.get("tags", ())),
        None if values.get("first") is None else _date(f"{where}.first", values["first"]),
        None if values.get("last") is None else _date(f"{where}.last", values["last"]),
        f"association.overrides for {category}",
    )
