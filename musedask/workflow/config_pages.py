"""Texts made of the declarations of the keys: comments of a new file, tables of the documentation, a check's report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..recipe_pages import table
from .config import Config, plain
from .config_file import Format, KeyPath, write_text
from .config_sections import SECTIONS, keys_of
from .config_values import values_text

_HEAD = "Configuration of musedask; the values are the defaults. docs/config.md tells more."
_COMMENTS: dict[KeyPath, str] = {
    ("parameters",): "Recipe parameters by their names, for a step or for a recipe wherever it runs, as\n"
    "  flat: {samples: false}    muse_scipost: {lambdamin: 5000}",
    ("obs",): "Other values for single observing blocks, by name or pattern, as\n"
    '  "NGC6530*": {sky: {fraction: 0.2}}',
}


def comments() -> dict[KeyPath, str]:
    """What is written before sections and keys."""
    found = dict(_COMMENTS)
    for section, model in SECTIONS.items():
        found[(section,)] = (model.__doc__ or "").strip()
        for key, field in model.model_fields.items():
            found[(section, key)] = f"{field.description} [{values_text(field)}]".replace("`", "")
    return found


def new_file(kind: Format, values: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """A configuration with all keys, and comments where the format has them.

    Parameters
    ----------
    kind : {"json", "yaml", "toml"}
    values : mapping
        Sections with values that are not the defaults.
    """
    data = Config().canonical(full=True)
    for section, keys in (values or {}).items():
        data[section] |= keys
    return write_text(data, kind, head=_HEAD, comments=comments())


def migrated(config: Config, kind: Format, *, full: bool = False, absolute: bool = False) -> str:
    """A configuration with canonical keys.

    Parameters
    ----------
    config : Config
    kind : {"json", "yaml", "toml"}
    full : bool
        All keys, not only those that were given.
    absolute : bool
        Write paths from the root, for a file in another folder.
    """
    return write_text(config.canonical(full=full, absolute=absolute), kind, comments=comments())


# ------------------------------------------------------------------------------------------ documentation


def _code(value: Any) -> str:
    return f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`"


def key_tables() -> str:
    """All keys, a table for each section, in Markdown."""
    parts = []
    for section, model in SECTIONS.items():
        rows = []
        for key, field in model.model_fields.items():
            declared = keys_of(model)[key]
            aliases = ", ".join(f"`{alias}`" for alias in declared["aliases"])
            default = plain(key, field.get_default(call_default_factory=True))
            effect = (field.description or "") + ("" if declared["per_ob"] else " *")
            test = declared["test"].rpartition("/")[2]
            rows.append((f"`{key}`", values_text(field), _code(default), effect, declared["acts"], aliases,
                         f"`{test}`" if test else ""))  # fmt: skip
        heads = ("key", "values", "default", "effect", "where it acts", "other spellings", "test")
        parts.append(f"### `{section}`\n\n{(model.__doc__ or '').strip()}\n\n" + table(heads, rows))
    return "\n" + "\n".join(parts) + "\n"


# ------------------------------------------------------------------------------------------ report


def missing(config: Config) -> list[tuple[str, str]]:
    """Keys of what should be there and is not, each with what was looked for."""
    found = []
    folders: list[tuple[str, Path]] = []
    if config.global_.rootpath is not None:
        folders.append(("global.rootpath", config.global_.rootpath))
    if config.global_.static_calib_path is not None:
        folders.append(("global.static_calib_path", config.global_.static_calib_path))
    elif config.global_.pipeline_path is not None:
        folders.append(("global.pipeline_path", config.global_.pipeline_path))
        if config.global_.pipeline_path.is_dir() and not config.static_folders:
            found.append(("global.pipeline_path", f"{config.global_.pipeline_path / 'calib' / 'muse*'}"))
    if config.musedask.raw or config.global_.rootpath is not None:
        folders += [("musedask.raw", folder) for folder in config.raw_folders]
    found += [(key, str(path)) for key, path in folders if not path.is_dir()]
    if config.musedask.engine != "native" and shutil.which(config.musedask.esorex) is None:
        found.append(("musedask.esorex", config.musedask.esorex))
    return found


def report(config: Config, absent: list[tuple[str, str]]) -> str:
    """What differs from the defaults, what is noteworthy, and what is not there."""
    differences = [(f"{section}.{key}", _short(plain(key, value))) for section, key, value, _ in config.differences()
                   if not key.startswith("esorex_kwargs")]  # fmt: skip
    written = config.canonical()
    parameters = [(name, _values(values)) for name, values in written.pop("parameters", {}).items()]
    blocks = []
    for name, sections in written.pop("obs", {}).items():
        for section, values in sections.items():
            if section == "parameters":
                blocks += [(name, f"{target}: {_values(given)}") for target, given in values.items()]
            elif values:
                blocks.append((name, f"{section}: {_values(values)}"))
    parts = [f"{config.source or 'configuration'}: valid\n"]
    for title, rows in (
        ("differs from the defaults", differences),
        ("recipe parameters", parameters),
        ("observing blocks", blocks),
        ("warnings", [(text, "") for text in config.warnings]),
        ("not there", absent),
    ):
        if rows:
            width = max(len(row[0]) for row in rows)
            parts.append(f"{title}\n" + "".join(f"  {a.ljust(width)}  {b}".rstrip() + "\n" for a, b in rows))
    return "\n".join(parts)


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _values(values: Mapping[str, Any]) -> str:
    return "  ".join(f"{key}={_short(plain(key, value))}" for key, value in values.items())
