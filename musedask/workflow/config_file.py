"""Files of a configuration: JSON, YAML, TOML, read with the places of their keys, and written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError

#: names of the keys from the outermost to that of a value; numbers count the entries of a list
KeyPath = tuple[str | int, ...]
Format = Literal["json", "yaml", "toml"]

FORMATS: dict[str, Format] = {".json": "json", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml"}


@dataclass(frozen=True)
class Document:
    """A file that was read.

    Attributes
    ----------
    name : str
        Its name for messages; empty if there is none.
    data : mapping
    folder : Path
        Where its relative paths begin.
    marks : mapping of tuple to (int, int)
        Line and column of each key, as far as known; column 0: not known.
    """

    name: str
    data: Mapping[str, Any]
    folder: Path
    marks: Mapping[KeyPath, tuple[int, int]] = field(default_factory=dict)

    def place(self, path: KeyPath) -> str:
        """Where a key is: file, line, column and the key itself."""
        found = path
        while found and found not in self.marks:
            found = found[:-1]
        line, column = self.marks.get(found, (0, 0))
        where = [f"{self.name}" if self.name else "", f"line {line}" if line else "", f"column {column}" * bool(column)]
        return ": ".join(part for part in (", ".join(w for w in where if w), dotted(path)) if part)


def dotted(path: KeyPath) -> str:
    """A key with those around it, as ``global.mode`` or ``sky.protect[0]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if re.fullmatch(r"[\w-]+", part) else json.dumps(part))
    return text


def format_of(path: Path, text: str = "") -> Format:
    """Format of a file by its suffix; a text that begins with a brace is JSON.

    Raises
    ------
    InputError
        If it cannot be told.
    """
    found = FORMATS.get(path.suffix.lower())
    if found is not None:
        return found
    if text.lstrip().startswith("{"):
        return "json"
    raise InputError(f"{path}: suffix {path.suffix!r} found, expected {', '.join(FORMATS)}")


def read_document(path: Path) -> Document:
    """Read a file.

    Raises
    ------
    InputError
        If it cannot be read, or is not of its format; the message tells line and column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8 text, expected a configuration") from error
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file, expected a configuration") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: a folder found, expected a file with a configuration") from error
    kind = format_of(path, text)
    data, marks = {"json": _read_json, "yaml": _read_yaml, "toml": _read_toml}[kind](text, str(path))
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise InputError(f"{path}: {type(data).__name__} found, expected sections with keys")
    return Document(str(path), text_keys(data), path.absolute().parent, marks)


def text_keys(data: Any) -> Any:
    """The same with texts for all keys: YAML and Python take numbers, too, as an ``OBS ID``."""
    if isinstance(data, Mapping):
        return {key if isinstance(key, str) else json.dumps(key, default=str): text_keys(v) for key, v in data.items()}
    return [text_keys(entry) for entry in data] if isinstance(data, (list, tuple)) else data


Marks = dict[KeyPath, tuple[int, int]]


def _read_json(text: str, name: str) -> tuple[Any, Marks]:
    import yaml

    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{name}, line {error.lineno}, column {error.colno}: {error.msg}, in {_line(text, error.lineno)!r}"
        ) from error
    try:
        # JSON is YAML, but for tabs between the tokens
        node = _loader()(text.replace("\t", " ")).get_single_node()
    except yaml.YAMLError:
        return data, {}
    return data, dict(_marks(node, name))


def _read_yaml(text: str, name: str) -> tuple[Any, Marks]:
    import yaml

    try:
        loader = _loader()(text)
        node = loader.get_single_node()
        marks = dict(_marks(node, name)) if node is not None else {}
        return (None if node is None else loader.construct_document(node)), marks
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{name}{where}: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{name}: {error}") from error


def _read_toml(text: str, name: str) -> tuple[Any, Marks]:
    import tomllib

    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", str(error))
        where, problem = (f", line {match[2]}, column {match[3]}", match[1]) if match else ("", str(error))
        raise InputError(f"{name}{where}: {problem}") from error
    marks: Marks = {}
    table: KeyPath = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if match := re.match(r"\s*\[([^\[\]]+)\]\s*(#.*)?$", line):
            table = tuple(_toml_key(match[1]))
            marks.setdefault(table, (number, line.index("[") + 1))
        elif match := re.match(r"(\s*)([^=#\[\]]+?)\s*=", line):
            marks.setdefault(table + tuple(_toml_key(match[2])), (number, len(match[1]) + 1))
    return data, marks


def _toml_key(text: str) -> Iterator[str]:
    for match in re.finditer(r'"((?:[^"\\]|\\.)*)"|\'([^\']*)\'|([\w-]+)', text):
        yield next(group for group in match.groups() if group is not None)


def _line(text: str, number: int) -> str:
    lines = text.splitlines()
    return lines[number - 1].strip()[:60] if number <= len(lines) else ""


_LOADER: list[Any] = []


def _loader() -> Any:
    """A loader of YAML 1.2: ``no`` and ``12:30`` are texts, ``1e-3`` is a number, dates stay texts."""
    import yaml

    if not _LOADER:

        class Loader(yaml.SafeLoader):
            yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

        for tag, pattern, first in (
            ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
            ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
            ("int", r"[-+]?[0-9]+", list("-+0123456789")),
            ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
             list("-+.0123456789")),
            ("merge", r"<<", ["<"]),
        ):  # fmt: skip
            Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), first)
        Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node)))
        _LOADER.append(Loader)
    return _LOADER[0]


def _marks(node: Any, name: str, path: KeyPath = ()) -> Iterator[tuple[KeyPath, tuple[int, int]]]:
    """Places of all keys; a key that is there twice is an error."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag.endswith(":merge"):
                continue
            mark = key_node.start_mark
            if key_node.value in lines:
                raise InputError(
                    f"{name}, line {mark.line + 1}, column {mark.column + 1}: {dotted((*path, key_node.value))} is "
                    f"there twice, first in line {lines[key_node.value]}"
                )
            lines[key_node.value] = mark.line + 1
            yield (*path, key_node.value), (mark.line + 1, mark.column + 1)
            yield from _marks(value_node, name, (*path, key_node.value))
    elif isinstance(node, yaml.SequenceNode):
        for number, entry in enumerate(node.value):
            yield (*path, number), (entry.start_mark.line + 1, entry.start_mark.column + 1)
            yield from _marks(entry, name, (*path, number))


# ------------------------------------------------------------------------------------------ writing


def write_text(
    data: Mapping[str, Mapping[str, Any]],
    kind: Format,
    *,
    head: str = "",
    comments: Mapping[KeyPath, str] | None = None,
) -> str:
    """A configuration as text.

    Parameters
    ----------
    data : mapping
        Sections with their keys.
    kind : {"json", "yaml", "toml"}
    head : str
        First lines, as a comment.
    comments : mapping of tuple to str, optional
        What is written before sections and keys; JSON has no comments.
    """
    if kind == "json":
        return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    lines = [*_comment(head, 0)]
    for section, values in data.items():
        lines += ["", *_comment((comments or {}).get((section,), ""), 0)]
        lines += _yaml_section(section, values, comments or {}) if kind == "yaml" else _toml_table(
            (section,), values, comments or {}
        )
    return "\n".join(lines).strip("\n") + "\n"


def _comment(text: str, indent: int) -> list[str]:
    import textwrap

    pad = " " * indent + "# "
    found = []
    for line in text.splitlines():
        found += textwrap.wrap(line, 100 - len(pad), initial_indent=pad, subsequent_indent=pad) or [pad.rstrip()]
    return found


def _yaml_section(section: str, values: Mapping[str, Any], comments: Mapping[KeyPath, str]) -> list[str]:
    import yaml

    def dump(value: Any) -> list[str]:
        return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10**6).rstrip("\n").splitlines()

    if not values:
        return [f"{section}: {{}}"]
    lines = [f"{section}:"]
    for name, value in values.items():
        lines += _comment(comments.get((section, name), ""), 2)
        if isinstance(value, Mapping) and value:
            lines += ["  " + line for line in dump({name: value})]
        else:
            text = yaml.safe_dump({name: value}, default_flow_style=True, allow_unicode=True, width=10**6)
            lines.append("  " + text.strip()[1:-1])
    return lines


def _toml_table(path: tuple[str, ...], values: Mapping[str, Any], comments: Mapping[KeyPath, str]) -> list[str]:
    """A table and those in it; what has no value is written as a comment, since TOML has no null."""
    lines = [f"[{'.'.join(map(_toml_name, path))}]"]
    tables = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    for name, value in values.items():
        if name in tables and (value or len(path) > 1):
            continue
        lines += _comment(comments.get((*path, name), ""), 0)
        lines.append(f"# {_toml_name(name)} =" if value is None else f"{_toml_name(name)} = {_toml_value(value)}")
    for name, value in tables.items():
        if value or len(path) > 1:
            lines += ["", *_comment(comments.get((*path, name), ""), 0), *_toml_table((*path, name), value, {})]
    return lines


def _toml_name(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_name(k)} = {_toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    # texts of JSON are those of TOML, but for DEL
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else repr(value)
