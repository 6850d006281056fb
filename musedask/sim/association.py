"""Which calibrations belong to an exposure, written as the ESO archive tells it (CalSelector).

The archive delivers, beside a raw exposure ``MUSE.<time>.fits.fz``, the files ``MUSE.<time>_raw2raw.xml`` and
``MUSE.<time>_raw2master.xml``: nested elements ``association``, each with its ``mainFiles`` and the
``associatedFiles`` that they need, which are associations again, down to frames that need nothing.  Files are
named without suffix.  (Form: https://archive.eso.org/cms/application_support/calselectorInfo.html and the sample
answers in the tests of astroquery.)
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from ..errors import InputError
from ..io.files import atomic_path
from .plan import ExposurePlan

#: what exposures of each type need, in the order in which it is listed
NEEDS: Mapping[str, tuple[str, ...]] = {
    "BIAS": (),
    "DARK": ("BIAS",),
    "FLAT": ("BIAS",),
    "ARC": ("BIAS", "FLAT"),
    "MASK": ("BIAS", "FLAT", "ARC"),
    "ILLUM": (),
    "SKYFLAT": ("BIAS", "FLAT", "ARC", "ILLUM"),
    "STD": ("BIAS", "FLAT", "ARC", "SKYFLAT", "ILLUM"),
    "ASTROMETRY": ("BIAS", "FLAT", "ARC", "SKYFLAT", "ILLUM", "STD"),
    "SKY": ("BIAS", "FLAT", "ARC", "SKYFLAT", "ILLUM", "STD", "ASTROMETRY"),
    "OBJECT": ("BIAS", "FLAT", "ARC", "SKYFLAT", "ILLUM", "STD", "ASTROMETRY"),
}
#: products that stand for raw frames in ``raw2master``
MASTERS: Mapping[str, tuple[str, ...]] = {
    "BIAS": ("MASTER_BIAS",),
    "DARK": ("MASTER_DARK",),
    "FLAT": ("MASTER_FLAT", "TRACE_TABLE"),
    "ARC": ("WAVECAL_TABLE", "LSF_PROFILE"),
    "SKYFLAT": ("TWILIGHT_CUBE",),
    "STD": ("STD_RESPONSE", "STD_TELLURIC"),
    "ASTROMETRY": ("ASTROMETRY_WCS",),
}
#: static calibrations of each type of exposure
STATICS: Mapping[str, tuple[str, ...]] = {
    "ARC": ("LINE_CATALOG",),
    "SKYFLAT": ("GEOMETRY_TABLE", "VIGNETTING_MASK"),
    "STD": ("BADPIX_TABLE", "GEOMETRY_TABLE", "EXTINCT_TABLE", "STD_FLUX_TABLE", "FILTER_LIST"),
    "ASTROMETRY": ("BADPIX_TABLE", "GEOMETRY_TABLE", "EXTINCT_TABLE", "ASTROMETRY_REFERENCE"),
    "SKY": ("BADPIX_TABLE", "GEOMETRY_TABLE", "EXTINCT_TABLE", "SKY_LINES"),
    "OBJECT": ("BADPIX_TABLE", "GEOMETRY_TABLE", "EXTINCT_TABLE", "SKY_LINES", "FILTER_LIST"),
}
#: taken one by one; the others by the template that they were taken with
_SINGLE = ("ILLUM", "STD", "ASTROMETRY", "SKY", "OBJECT")
#: further away in time, the archive says so [days]
_CALIBRATION_PLAN = {"ILLUM": 0.1, "STD": 1.0, "BIAS": 1.0, "FLAT": 1.0, "ARC": 1.0, "SKYFLAT": 7.0, "ASTROMETRY": 30.0}


@dataclass
class Association:
    """Frames, and what they need.

    Attributes
    ----------
    category : str
        Raw type, or category of a product or static calibration.
    files : list of str
        Names without suffix.
    categories : list of str
        Tags of the files.
    needs : list of Association
    match : str
        ``calib_plan`` if it is as near in time as it should be.
    missing : list of str
        Types of which nothing suitable was found.
    """

    category: str
    files: list[str]
    categories: list[str]
    needs: list[Association] = field(default_factory=list)
    match: str = "calib_plan"
    missing: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether nothing is missing in it or below."""
        return not self.missing and all(need.complete for need in self.needs)

    def all_files(self) -> list[tuple[str, str]]:
        """Names and tags of all files in it, each once, in the order in which they come."""
        found = dict(zip(self.files, self.categories, strict=True))
        for need in self.needs:
            for name, category in need.all_files():
                found.setdefault(name, category)
        return list(found.items())


def archive_name(plan: ExposurePlan) -> str:
    """``MUSE.2014-12-08T02:48:56.798``, without suffix."""
    return f"MUSE.{plan.date_obs}"


def _seconds(plan: ExposurePlan) -> float:
    return datetime.fromisoformat(plan.date_obs).timestamp()


def _setup(tag: str, mode: str) -> tuple[str, ...]:
    """What must be equal for a calibration to serve (rules of the on-line pipeline)."""
    field_mode, _, wavelengths = mode.partition("-")
    if tag in ("BIAS", "DARK", "MASK"):
        return ()
    if tag in ("ILLUM", "ASTROMETRY"):
        return (field_mode,)
    if tag in ("ARC", "SKYFLAT"):
        # without AO they serve exposures with AO of the same range
        return (field_mode, wavelengths[-1])
    return (mode,)


def nearest(plan: ExposurePlan, tag: str, plans: Sequence[ExposurePlan]) -> list[ExposurePlan]:
    """Calibrations of a type that serve an exposure: nearest in time among those of a fitting mode.

    Parameters
    ----------
    plan : ExposurePlan
        What is to be calibrated.
    tag : str
        Type of calibration.
    plans : sequence of ExposurePlan
        All there are.

    Returns
    -------
    list of ExposurePlan
        One exposure, or all that were taken with one template.
    """
    wanted = _setup(tag, plan.mode)
    candidates = [p for p in plans if p.tag == tag and _setup(tag, p.mode) == wanted]
    if tag == plan.tag or not candidates:
        return []
    # of the same mode rather than with or without AO
    other = len(wanted) > 1
    best = min(candidates, key=lambda p: (other and p.mode != plan.mode, abs(_seconds(p) - _seconds(plan)), p.index))
    if tag in _SINGLE:
        return [best]
    return [p for p in candidates if p.template_start == best.template_start and p.mode == best.mode]


def associate(
    plan: ExposurePlan,
    plans: Sequence[ExposurePlan],
    *,
    masters: Callable[[str, ExposurePlan], str | None] | None = None,
    statics: Mapping[str, str] | None = None,
    optional: Sequence[str] = ("ASTROMETRY", "ILLUM"),
) -> Association:
    """The tree of what an exposure needs.

    Parameters
    ----------
    plan : ExposurePlan
    plans : sequence of ExposurePlan
        All raw frames there are.
    masters : callable, optional
        Gives the name of a product, by its category and the first raw frame that it is made of, or None if
        there is none: the tree is then of products instead of raw calibrations.
    statics : mapping, optional
        Names of static calibrations by category.
    optional : sequence of str
        Types that may be missing.

    Returns
    -------
    Association
    """
    return _tree([plan], plans, masters, statics or {}, optional)


def _tree(
    group: Sequence[ExposurePlan],
    plans: Sequence[ExposurePlan],
    masters: Callable[[str, ExposurePlan], str | None] | None,
    statics: Mapping[str, str],
    optional: Sequence[str],
) -> Association:
    plan = group[0]
    tree = Association(plan.tag, [archive_name(p) for p in group], [p.tag for p in group])
    for tag in NEEDS[plan.tag]:
        found = nearest(plan, tag, plans)
        if not found:
            if tag not in optional:
                tree.missing.append(tag)
            continue
        days = abs(_seconds(found[0]) - _seconds(plan)) / 86400
        match = "calib_plan" if days <= _CALIBRATION_PLAN.get(tag, 1.0) else "other"
        if masters is not None and tag in MASTERS:
            names = [(category, masters(category, found[0])) for category in MASTERS[tag]]
            made = [Association(category, [name], [category], match=match) for category, name in names if name]
            if made:
                tree.needs += made
                continue
        branch = _tree(found, plans, masters, statics, optional)
        branch.match = match
        tree.needs.append(branch)
    tree.needs += [
        Association(category, [statics[category]], [category], match="N/A")
        for category in STATICS.get(plan.tag, ())
        if category in statics
    ]
    return tree


def _element(tree: Association, mode: str | None) -> ET.Element:
    attributes = {"category": tree.category, "certified": "true", "complete": str(tree.complete).lower()}
    attributes |= {"mode": mode} if mode else {"match": tree.match}
    element = ET.Element("association", {**attributes, "type": "main"})
    files = ET.SubElement(element, "mainFiles")
    for name, category in zip(tree.files, tree.categories, strict=True):
        ET.SubElement(files, "file", {"category": category, "name": name})
    messages = ET.SubElement(element, "messages")
    for tag in tree.missing:
        ET.SubElement(messages, "message", {"severity": "WARNING"}).text = f"no {tag} found"
    branches = ET.SubElement(element, "associatedFiles")
    for need in tree.needs:
        branches.append(_element(need, None))
    return element


def to_xml(tree: Association, mode: str = "Raw2Raw") -> str:
    """The tree as the archive writes it; `mode` is ``Raw2Raw`` or ``Raw2Master``."""
    element = _element(tree, mode)
    ET.indent(element, space="    ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(element, encoding="unicode") + "\n"


def read_association(path: str | os.PathLike[str]) -> Association:
    """Read what the archive or `write_associations` has written.

    Raises
    ------
    InputError
        If the file is no such thing.
    """
    try:
        root = ET.parse(path).getroot()
    except (ET.ParseError, OSError) as error:
        raise InputError(f"{path}: cannot be read as an association of the archive: {error}") from error

    def name_of(element: ET.Element) -> str:
        return element.tag.rpartition("}")[2]

    def children(element: ET.Element, name: str) -> list[ET.Element]:
        return [child for part in element if name_of(part) == name for child in part]

    def tree_of(element: ET.Element) -> Association:
        files = [f for f in children(element, "mainFiles") if name_of(f) == "file"]
        branches = [a for a in children(element, "associatedFiles") if name_of(a) == "association"]
        return Association(
            element.get("category", ""),
            [f.get("name", "") for f in files],
            [f.get("category", "") for f in files],
            [tree_of(a) for a in branches],
            element.get("match", ""),
            [(m.text or "").removeprefix("no ").removesuffix(" found") for m in children(element, "messages")],
        )

    if name_of(root) != "association":
        raise InputError(f"{path}: element {root.tag!r} found, expected an association of the archive")
    return tree_of(root)


def write_associations(
    folder: str | os.PathLike[str],
    plans: Sequence[ExposurePlan],
    *,
    masters: Callable[[str, ExposurePlan], str | None] | None = None,
    statics: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write the XML files of all science exposures of a night, beside them.

    Parameters
    ----------
    folder : path-like
        Where the raw frames are.
    plans : sequence of ExposurePlan
    masters, statics
        See `associate`; without `masters` only ``_raw2raw.xml`` are written.

    Returns
    -------
    list of Path
    """
    written = []
    for plan in plans:
        if plan.tag not in ("OBJECT", "SKY"):
            continue
        kinds: list[tuple[str, str, Callable[[str, ExposurePlan], str | None] | None]] = [("raw2raw", "Raw2Raw", None)]
        if masters is not None:
            kinds.append(("raw2master", "Raw2Master", masters))
        for suffix, mode, products in kinds:
            tree = associate(plan, plans, masters=products, statics=statics)
            path = Path(folder) / f"{archive_name(plan)}_{suffix}.xml"
            with atomic_path(path, overwrite=True) as part:
                part.write_text(to_xml(tree, mode))
            written.append(path)
    return written
