"""What goes with what and why, and what is missing, as text, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .associate import LEVELS, NEEDS, Associations, Choice, Group, iter_choices
from .classify import RawFile
from .names import block_of

#: form of the JSON
SCHEMA_VERSION = 1


def rows_of(associations: Associations, ids: Mapping[RawFile, str]) -> Iterator[dict[str, Any]]:
    """Rows of a table: what each group needs, with what it gets, or why there is nothing.

    Parameters
    ----------
    associations : Associations
    ids : mapping of RawFile to str
        Identifiers of exposures.
    """
    for group, choice in iter_choices(associations):
        yield {
            **_about(group, ids), "category": choice.category, "level": choice.level, "source": choice.source,
            "choice": _what(choice), "files": [str(f.path) for f in choice.frames], "reason": choice.reason,
        }  # fmt: skip
    for missing in associations.missing:
        yield {
            **_about(associations.groups[missing.group], ids), "category": missing.category, "level": None,
            "source": "missing" if missing.required else "none", "choice": "", "files": [], "reason": missing.reason,
        }  # fmt: skip


def _about(group: Group, ids: Mapping[RawFile, str]) -> dict[str, Any]:
    first = group.frames[0]
    return {
        "group": group.id, "exposure": ids.get(first, ""), "ob": first.ob_name, "ob_id": first.ob_id,
        "tag": group.tag, "mode": group.mode, "night": str(group.night),
    }  # fmt: skip


def _what(choice: Choice) -> str:
    if choice.group is not None:
        return choice.group.id
    first = choice.files[0].path.name
    return first if len(choice.files) == 1 else f"{first} and {len(choice.files) - 1} more"


def csv_table(associations: Associations, ids: Mapping[RawFile, str]) -> str:
    """Rows as comma-separated values; files are joined by blanks."""
    stream = io.StringIO()
    rows = [{**row, "files": " ".join(row["files"])} for row in rows_of(associations, ids)]
    columns = [*_COLUMNS]
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


_COLUMNS = (
    "group", "exposure", "ob", "ob_id", "tag", "mode", "night", "category", "level", "source", "choice", "files",
    "reason",
)  # fmt: skip


def json_table(
    associations: Associations, ids: Mapping[RawFile, str], problems: Iterable[tuple[Path, str]] = ()
) -> str:
    """Everything as JSON: groups with their frames, choices, what is missing and what is not used."""
    groups = {
        name: {**_about(group, ids), "frames": [_file(f) for f in group.frames], "used": name in associations.choices}
        for name, group in sorted(associations.groups.items())
    }
    content = {
        "schema_version": SCHEMA_VERSION,
        "groups": groups,
        "choices": [row for row in rows_of(associations, ids) if row["choice"]],
        "missing": [asdict(m) for m in associations.missing],
        "unused": [{"path": str(f.path), "tag": f.tag, "reason": reason} for f, reason in associations.unused],
        "problems": [{"path": str(path), "reason": reason} for path, reason in problems],
        "warnings": associations.warnings,
    }
    return json.dumps(content, indent=1) + "\n"


def _file(file: RawFile) -> dict[str, Any]:
    return {"path": str(file.path), "name": file.name, "date_obs": file.date_obs, "exptime": file.exptime}


# ----------------------------------------------------------------------------------------- text


def text_table(
    associations: Associations, ids: Mapping[RawFile, str], problems: Sequence[tuple[Path, str]] = ()
) -> str:
    """Text: exposures by observing block with their calibrations, what these need, what is missing and not used.

    Exposures of a block for which the same is chosen are told together.
    """
    lines: list[str] = []
    science = associations.of_tag("OBJECT", "SKY")
    blocks: dict[tuple[Any, ...], list[Group]] = {}
    for group in science:
        blocks.setdefault((*block_of(group.frames[0]), group.mode), []).append(group)
    for (name, number, mode), members in blocks.items():
        lines.append(f"{name or 'no name'} (OB {number}), {mode}")
        alike: dict[tuple[Any, ...], list[Group]] = {}
        for group in members:
            key = (group.tag, group.night, *((c.category, _what(c)) for c in associations.choices[group.id].values()))
            alike.setdefault(key, []).append(group)
        for some in alike.values():
            lines += _exposures(associations, ids, some)
        lines.append("")
    calibrations = [
        group for tag in NEEDS if tag not in ("OBJECT", "SKY", "ILLUM") for group in associations.of_tag(tag)
    ]
    if calibrations:
        lines.append("Calibrations to be made")
        width = max(len(group.id) for group in calibrations)
        for group in calibrations:
            lines.append(f"  {group.id:{width}}  {len(group.frames)} {'frames' if len(group.frames) > 1 else 'frame'}")
            choices = associations.choices[group.id].values()
            lines += _choices([c for c in choices if c.group is not None or c.source != "rule"], "    ")
        lines.append("")
    missing = [m for m in associations.missing if m.required]
    if missing:
        lines.append("Missing")
        lines += [f"  {m.group}: {m.category}: {m.reason}" for m in missing]
        lines.append("")
    notes = [*associations.warnings, *(f"{path}: {reason}" for path, reason in problems)]
    if notes:
        lines += ["Warnings", *(f"  {note}" for note in notes), ""]
    if associations.unused:
        lines += ["Not used", *_unused(associations.unused), ""]
    lines.append(summary(associations))
    return "\n".join(lines) + "\n"


def _exposures(associations: Associations, ids: Mapping[RawFile, str], groups: Sequence[Group]) -> list[str]:
    lines = [
        f"  {g.tag} {ids.get(g.frames[0], '')}  {g.frames[0].path.name}  {g.frames[0].exptime:g} s" for g in groups
    ]
    choices = associations.choices[groups[0].id]
    worst = [max((associations.choices[g.id][c] for g in groups), key=lambda choice: choice.level) for c in choices]
    lines += _choices(worst, "    ")
    lines += [
        f"    {m.category:15} -  {'MISSING' if m.required else 'none'}: {m.reason}"
        for m in associations.missing if m.group == groups[0].id
    ]  # fmt: skip
    return lines


def _choices(choices: Iterable[Choice], indent: str) -> list[str]:
    return [f"{indent}{c.category:15} {c.level}  {_what(c)}  {_why(c)}" for c in choices]


def _why(choice: Choice) -> str:
    return f"({choice.reason})"


def _unused(unused: Iterable[tuple[RawFile, str]]) -> list[str]:
    """By tag and reason, with the first of the files."""
    reasons: dict[tuple[str, str], list[RawFile]] = {}
    for file, reason in unused:
        reasons.setdefault((file.tag or "unknown", reason), []).append(file)
    return [
        f"  {tag} ({len(files)}): {reason}: {files[0].path.name}{', ...' if len(files) > 1 else ''}"
        for (tag, reason), files in reasons.items()
    ]


def summary(associations: Associations) -> str:
    """Numbers of exposures and calibrations, of choices by level, and of what is missing."""
    numbers = [0, 0, 0, 0]
    for _, choice in iter_choices(associations):
        numbers[choice.level] += 1
    levels = ", ".join(f"{n} {word}" for n, word in zip(numbers, LEVELS, strict=True) if n)
    science, used = len(associations.science()), len(associations.choices)
    lacking = sum(bool(associations.lacks(g.id)) for g in associations.science())
    text = f"{science} exposures of targets, {used - science} other groups; choices: {levels or 'none'}"
    return text + (f"; {lacking} exposures lack something that they cannot do without" if lacking else "")
