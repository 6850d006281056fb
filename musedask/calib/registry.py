"""Which recipes have a function of their own here."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from ..recipes import NATIVE
from .task import NativeFunction


def has_native(recipe: str) -> bool:
    """Whether a recipe has a function of its own here; nothing is loaded to find out."""
    return recipe in NATIVE and find_spec(NATIVE[recipe].partition(":")[0]) is not None


def native_recipes() -> list[str]:
    """Names of the recipes that have a function of their own here."""
    return [name for name in NATIVE if has_native(name)]


def load_function(place: str) -> NativeFunction:
    """Function of a recipe by its place, ``module:name``."""
    module, _, name = place.partition(":")
    function: NativeFunction = getattr(import_module(module), name)
    return function
