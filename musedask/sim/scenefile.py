"""Scene files: YAML to scenes and back, with messages that name what is wrong."""

from __future__ import annotations

import difflib
import math
import os
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from ..errors import InputError
from ..io.files import atomic_path
from .cubescene import CubeScene
from .fields import astrometric_field, nebula_field, standard_star
from .scene import (
    Background,
    Galaxy,
    LineRegion,
    Nebula,
    NebulaLine,
    Scene,
    SceneLike,
    Star,
    default_scene,
    standard_coordinates,
)
from .spectra import KINDS, BlackBody, Tabulated, WhiteDwarf, flux_from_ab

_T = TypeVar("_T")
_KINDS = ("scene", "cube", "default", "astrometric", "standard", "nebula")


def load_scene(path: str | os.PathLike[str]) -> SceneLike:
    """Read a scene: a YAML file, or a cube in FITS or Zarr.

    Parameters
    ----------
    path : path-like
        ``.yaml`` or ``.yml``, else a cube.  Paths in a YAML file are relative to its folder.

    Returns
    -------
    SceneLike

    Raises
    ------
    InputError
        If the file is missing, is not YAML, or a key or value in it is wrong: the message names it.

    Examples
    --------
    >>> scene = load_scene("ngc.yaml")     # doctest: +SKIP
    """
    import yaml

    path = Path(path)
    if path.suffix.lower() not in (".yaml", ".yml"):
        return CubeScene.from_cube(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, Mapping):
        raise InputError(f"{path}: {_found(data)} found, expected keys and values such as 'stars: [...]'")
    try:
        return build(data, path.parent)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def save_scene(scene: SceneLike, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a scene as YAML, which `load_scene` reads again.

    Parameters
    ----------
    scene : SceneLike
        A `CubeScene` is written as the path of its cube.
    path : path-like
    overwrite : bool

    Raises
    ------
    OutputExistsError
        If the file exists and `overwrite` is false.
    """
    import yaml

    text = yaml.safe_dump(_plain(scene.to_dict()), sort_keys=False, default_flow_style=None, width=110)
    with atomic_path(Path(path), overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")


def build(data: Mapping[str, Any], folder: Path | None = None) -> SceneLike:
    """Make a scene from plain data.

    Parameters
    ----------
    data : mapping
        Contents of a scene file.
    folder : pathlib.Path, optional
        What paths in it are relative to.

    Raises
    ------
    InputError
        If something in it is wrong.
    """
    values = dict(data)
    kind = values.pop("kind", "scene")
    if kind == "scene":
        return _scene(values, folder)
    if kind == "cube":
        return _cube(values, folder)
    if kind == "default":
        return _call(default_scene, values, "default")
    if kind == "astrometric":
        return _call(astrometric_field, values, "astrometric")
    if kind == "nebula":
        return _call(nebula_field, values, "nebula")
    if kind == "standard":
        return _call(lambda name: standard_star(name).scene, values, "standard", {"name": str})
    raise InputError(f"scene: unknown kind {kind!r}, expected one of {', '.join(_KINDS)}")


def _scene(values: dict[str, Any], folder: Path | None) -> Scene:
    parts: dict[str, Any] = {}
    centre = (values.get("ra"), values.get("dec"))
    for name, cls in (("stars", Star), ("galaxies", Galaxy), ("lines", LineRegion), ("nebulae", Nebula)):
        items = values.pop(name, None)
        if items is None:
            continue
        if not isinstance(items, Sequence) or isinstance(items, str):
            raise InputError(f"{name}: {_found(items)} found, expected a list")
        made = []
        for i, item in enumerate(items):
            where = f"{name}[{i}]"
            if not isinstance(item, Mapping):
                raise InputError(f"{where}: {_found(item)} found, expected keys and values")
            made.append(_source(cls, dict(item), where, centre, folder))
        parts[name] = tuple(made)
    if "background" in values:
        background = values.pop("background")
        if not isinstance(background, Mapping):
            background = {"level": background}
        parts["background"] = _make(Background, dict(background), "background")
    seeing = values.pop("seeing", None)
    if seeing is not None:
        try:
            parts["seeing"] = tuple((float(w), float(f)) for w, f in seeing)
        except (TypeError, ValueError):
            raise InputError("seeing: expected pairs [wavelength, FWHM]") from None
    return _make(Scene, values, "scene", parts)


def _source(
    cls: type[Any], item: dict[str, Any], where: str, centre: tuple[Any, Any], folder: Path | None
) -> Any:
    """A star, galaxy, region or nebula, from what a user may write."""
    parts: dict[str, Any] = {}
    names = {f.name for f in fields(cls)}
    if "dra" in names and ("ra" in item or "dec" in item):
        ra, dec = (_number(item.pop(key, None), f"{where}.{key}") for key in ("ra", "dec"))
        if "dra" in item or "ddec" in item:
            raise InputError(f"{where}: ra, dec and dra, ddec found, expected one pair")
        if centre[0] is None or centre[1] is None:
            raise InputError(f"{where}: ra and dec need the scene's own ra and dec")
        ra0, dec0 = _number(centre[0], "ra"), _number(centre[1], "dec")
        xi, eta = standard_coordinates(ra, dec, ra0, dec0)
        if not (math.hypot(float(xi), float(eta)) < 3600 and abs((ra - ra0 + 180) % 360 - 180) < 90):
            raise InputError(f"{where}: ra {ra}, dec {dec} is more than a degree from the scene's {ra0}, {dec0}")
        parts |= {"dra": float(xi), "ddec": float(eta)}
    if cls in (Star, Galaxy) and "mag" in item:
        if "flux" in item:
            raise InputError(f"{where}: mag and flux found, expected one of them")
        parts["flux"] = flux_from_ab(_number(item.pop("mag"), f"{where}.mag"))
    if cls in (Star, Galaxy) and item.get("spectrum") is not None:
        parts["spectrum"] = _spectrum(item.pop("spectrum"), f"{where}.spectrum", folder)
    if cls is Nebula and item.get("lines") is not None:
        lines = item.pop("lines")
        if not isinstance(lines, Sequence) or isinstance(lines, str):
            raise InputError(f"{where}.lines: {_found(lines)} found, expected a list")
        parts["lines"] = tuple(
            _make(NebulaLine, dict(line), f"{where}.lines[{i}]")
            if isinstance(line, Mapping)
            else _refuse(f"{where}.lines[{i}]", line)
            for i, line in enumerate(lines)
        )
    return _make(cls, item, where, parts)


def _refuse(where: str, value: Any) -> Any:
    raise InputError(f"{where}: {_found(value)} found, expected keys and values")


def _spectrum(value: Any, where: str, folder: Path | None) -> BlackBody | WhiteDwarf | Tabulated:
    if not isinstance(value, Mapping):
        _refuse(where, value)
    item = dict(value)
    kind = item.pop("kind", None)
    if kind not in KINDS:
        raise InputError(f"{where}.kind: {kind!r} found, expected one of {', '.join(KINDS)}")
    parts: dict[str, Any] = {}
    if kind == "table":
        if "file" in item:
            path = Path(folder or ".") / str(item.pop("file"))
            try:
                table = np.loadtxt(path, ndmin=2)
            except (OSError, ValueError) as error:
                raise InputError(f"{where}.file: {path} cannot be read: {error}") from error
            if table.shape[1] < 2:
                raise InputError(f"{where}.file: {path} has one column, expected wavelength and flux")
            parts = {"wave": tuple(table[:, 0].tolist()), "flux": tuple(table[:, 1].tolist())}
        else:
            for key in ("wave", "flux"):
                numbers = item.pop(key, None)
                if not isinstance(numbers, Sequence) or isinstance(numbers, str):
                    raise InputError(f"{where}.{key}: {_found(numbers)} found, expected a list of numbers, or file")
                parts[key] = tuple(_number(v, f"{where}.{key}[{i}]") for i, v in enumerate(numbers))
    made: BlackBody | WhiteDwarf | Tabulated = _make(KINDS[kind], item, where, parts)
    return made


def _cube(values: dict[str, Any], folder: Path | None) -> CubeScene:
    known = {"source": str, "outside": str, "ra": float, "dec": float, "scale": float}
    _check_keys(values, known, "cube")
    if not values.get("source"):
        raise InputError("cube: no source, expected the path of a cube")
    scale = _number(values.get("scale", 1.0), "cube.scale")
    place = {key: _number(values[key], f"cube.{key}") for key in ("ra", "dec") if values.get(key) is not None}
    scene = CubeScene.from_cube(
        Path(folder or ".") / str(values["source"]), outside=values.get("outside", "mirror"), **place
    )
    from dataclasses import replace

    return replace(scene, scale=scale)


# --- checks ---------------------------------------------------------------------------------------------


def _make(cls: type[_T], values: dict[str, Any], where: str, parts: Mapping[str, Any] | None = None) -> _T:
    """An instance of a dataclass from checked values and parts that are made already."""
    done = dict(parts or {})
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    _check_keys(values, known, where, done)
    for name, value in values.items():
        done[name] = _checked(value, hints[name], f"{where}.{name}" if where != "scene" else name)
    missing = [
        name
        for name, f in known.items()
        if name not in done and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise InputError(f"{where}: no {', '.join(missing)}")
    try:
        return cls(**done)
    except InputError as error:
        raise InputError(f"{where}: {error}" if where != "scene" else str(error)) from error


def _call(
    function: Callable[..., SceneLike], values: dict[str, Any], where: str, hints: Mapping[str, Any] | None = None
) -> SceneLike:
    """A scene from a function that makes one."""
    hints = dict(hints or get_type_hints(function))
    hints.pop("return", None)
    _check_keys(values, hints, where)
    checked = {name: _checked(value, hints[name], f"{where}.{name}") for name, value in values.items()}
    try:
        return function(**checked)
    except TypeError as error:
        raise InputError(f"{where}: {error}") from error


def _check_keys(
    values: Mapping[str, Any], known: Mapping[str, Any], where: str, done: Mapping[str, Any] | None = None
) -> None:
    for name in values:
        if name not in known or not isinstance(name, str):
            close = difflib.get_close_matches(str(name), [*known, "mag", "ra", "dec"], 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise InputError(f"{where}: unknown key {name!r}: {hint}expected {', '.join(known)}")
        if done and name in done:
            raise InputError(f"{where}: {name} found twice, in two ways")


def _checked(value: Any, hint: Any, where: str) -> Any:
    """A value of the type that a field has."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _checked(value, next(a for a in arguments if a is not type(None)), where)
    if origin is Literal:
        if value not in arguments:
            raise InputError(f"{where}: {_found(value)} found, expected one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        size = None if Ellipsis in arguments else len(arguments)
        if not isinstance(value, Sequence) or isinstance(value, str) or (size and len(value) != size):
            raise InputError(f"{where}: {_found(value)} found, expected {size or 'some'} numbers")
        return tuple(_checked(v, arguments[0], f"{where}[{i}]") for i, v in enumerate(value))
    if hint is float:
        return _number(value, where)
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"{where}: {_found(value)} found, expected a whole number")
        return value
    if hint is str and not isinstance(value, str):
        raise InputError(f"{where}: {_found(value)} found, expected text")
    return value


def _number(value: Any, where: str) -> float:
    # YAML takes 1e4 for text: a number needs a point there
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise InputError(f"{where}: {_found(value)} found, expected a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{where}: {_found(value)} found, expected a number")
    return float(value)


def _found(value: Any) -> str:
    if isinstance(value, Mapping):
        return "keys and values"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a list of {len(value)}"
    return "nothing" if value is None else repr(value)


def _plain(value: Any) -> Any:
    """Data that YAML can hold, without what is at its default or empty."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items() if v is not None and v != "" and v != () and v != []}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    return value
