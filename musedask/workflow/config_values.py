"""Kinds of values of a configuration: what users may write for them, and what they are called."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BeforeValidator, Field, ValidationInfo
from pydantic.fields import FieldInfo

from ..compute import parse_bytes
from ..errors import InputError
from .steps import STEP_RECIPES

#: IFUs of the instrument, as in .instrument, whose import would make this one slow
_N_IFUS = 24


def _path(value: Any, info: ValidationInfo) -> Any:
    """Paths are relative to the folder of the file; ``~`` and ``$VARIABLE`` are replaced."""
    if not isinstance(value, (str, Path)):
        raise ValueError("expected a path")
    folder = (info.context or {}).get("folder", Path())
    return Path(folder) / os.path.expanduser(os.path.expandvars(value))


def _folder(value: Any, info: ValidationInfo) -> Any:
    return None if value is None or value == "" else _path(value, info)


def _folders(value: Any) -> Any:
    return None if value is None else _several(value) or None


def _nothing(value: Any) -> Any:
    """Empty text and the word none are nothing."""
    return None if isinstance(value, str) and value.strip().lower() in ("", "none") else value


def _several(value: Any) -> Any:
    """A single value is a list of one, null is an empty list."""
    if value is None or value == "":
        return ()
    return (value,) if isinstance(value, (str, int, float, Path)) else value


def _numbers_text(value: Any) -> Any:
    """A list of numbers as the text that recipes take."""
    if isinstance(value, (list, tuple)):
        return ",".join(str(part) for part in value)
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _times(value: Any) -> Any:
    """Exposure times; false, null and 0 are none."""
    return () if value is None or value is False or value in (0, "") else _several(value)


def _ifus(value: Any) -> Any:
    """IFUs: numbers, a list of them, or a text such as ``1-3,12``."""
    if value is None or value == "":
        return None
    numbers: set[int] = set()
    parts = value if isinstance(value, (list, tuple)) else str(value).split(",")
    for part in map(str, parts):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match:
            raise ValueError("expected something like 1-24 or 3,5-7")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last <= _N_IFUS:
            raise ValueError(f"expected IFUs from 1 to {_N_IFUS}")
        numbers |= set(range(first, last + 1))
    if not numbers:
        raise ValueError("expected one IFU at least")
    return tuple(sorted(numbers))


def _size(value: Any) -> Any:
    if value is None or value == "":
        return None
    try:
        parse_bytes(value)
    except InputError as error:
        raise ValueError(str(error)) from error
    return str(value)


def _comma_list(value: Any) -> Any:
    """A list, or a text with commas."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _engines(value: Any) -> Any:
    """Steps that have a recipe, and full names of recipes."""
    for name in value if isinstance(value, dict) else ():
        if name not in STEP_RECIPES and name not in STEP_RECIPES.values():
            near = get_close_matches(str(name), [*STEP_RECIPES, *STEP_RECIPES.values()], n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(STEP_RECIPES)}"
            raise ValueError(f"expected a step that has a recipe, or that recipe, not {name!r}; {hint}")
    return {} if value is None else value


Folder = Annotated[Path | None, BeforeValidator(_folder)]
Folders = Annotated[tuple[Annotated[Path, BeforeValidator(_path)], ...] | None, BeforeValidator(_folders)]
Words = Annotated[tuple[str, ...], BeforeValidator(_several)]
#: options of esorex in one text, null for none
Options = Annotated[str | None, BeforeValidator(_nothing)]
NumbersText = Annotated[str, BeforeValidator(_numbers_text)]
Times = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(_times)]
Ifus = Annotated[tuple[int, ...] | None, BeforeValidator(_ifus)]
Engine = Literal["auto", "esorex", "native"]
Engines = Annotated[dict[str, Engine], BeforeValidator(_engines)]
Size = Annotated[str | None, BeforeValidator(_size)]
Saved = Annotated[
    tuple[Literal["cube", "autocal", "raman", "skymodel", "individual", "positioned", "combined", "stacked"], ...],
    BeforeValidator(_comma_list),
]
Autocalib = Annotated[Literal["none", "deepfield", "user"], BeforeValidator(lambda v: "none" if v is None else v)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


def choices_of(annotation: Any) -> tuple[Any, ...]:
    """Values that a type allows, if it allows only some."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(c for part in get_args(annotation) for c in choices_of(part)) if annotation is not None else ()


def values_text(field: FieldInfo) -> str:
    """What a value may be, in words."""
    declared = field.json_schema_extra
    if isinstance(declared, dict) and declared.get("values"):
        return str(declared["values"])
    text = _type_text(field.annotation)
    limits = [(sign, getattr(m, name)) for m in field.metadata for name, sign in _LIMITS.items() if hasattr(m, name)]
    return text + " and".join(f" {sign} {value:g}" for sign, value in limits)


_LIMITS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_NAMES = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path"}


def _type_text(annotation: Any) -> str:
    choices = choices_of(annotation)
    parts = get_args(annotation)
    null = " or null" if type(None) in parts else ""
    if get_origin(annotation) is tuple:
        inner = parts[0]
        if get_origin(inner) is tuple:
            return "list of pairs of numbers"
        if choices:
            return f"list of {', '.join(choices)}"
        return f"list of {_plural(_type_text(inner))}"
    if get_origin(annotation) is dict:
        return f"texts with {_plural(_type_text(parts[1]))}" if parts[1] is not Any else "keys with values"
    if get_origin(annotation) is Annotated:
        return _type_text(parts[0])
    if choices:
        return ", ".join(choices) + null
    kinds = [part for part in parts if part is not type(None)] if parts else [annotation]
    return " or ".join(_NAMES[kind] if kind in _NAMES else _type_text(kind) for kind in kinds) + null


def _plural(text: str) -> str:
    text = text.removesuffix(" or null")
    return text.replace("list", "lists", 1) if text.startswith("list") else f"{text}s"
