"""What a recipe is called, takes and makes, declared once.

The declaration gives the options of the command line, the arguments of esorex, the
``PRO REC1 PARAMi`` cards of the products and the reference pages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import InputError


@dataclass(frozen=True)
class Parameter:
    """One recipe parameter, as in the reference pipeline.

    Attributes
    ----------
    name : str
        Name without the recipe prefix.
    type : type
        ``str``, ``int``, ``float`` or ``bool``.
    default : object
    help : str
        One line.
    choices : tuple of str
        Allowed values of a string, empty if anything goes.
    """

    name: str
    type: type
    default: Any
    help: str
    choices: tuple[str, ...] = ()

    def check(self, value: Any) -> Any:
        """Convert a value to the parameter's type.

        Raises
        ------
        InputError
            If the value is of the wrong type or not among the choices.
        """
        if self.type is bool and isinstance(value, str):
            if value.lower() not in ("true", "false"):
                raise InputError(f"parameter {self.name}: {value!r} found, expected true or false")
            return value.lower() == "true"
        try:
            converted = self.type(value)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"parameter {self.name}: {value!r} found, expected a value of type {self.type.__name__}"
            ) from error
        if self.type is float and not math.isfinite(converted):
            raise InputError(f"parameter {self.name}: {value} found, expected a finite number")
        if self.choices and converted not in self.choices:
            raise InputError(
                f"parameter {self.name}: {value!r} found, expected one of {', '.join(self.choices)}"
            )
        return converted

    def to_card(self, value: Any) -> str:
        """Write a value as the reference pipeline does in ``PRO REC1 PARAMi VALUE``."""
        if self.type is bool:
            return "true" if value else "false"
        if self.type is float:
            return f"{value:g}"
        return str(value)


@dataclass(frozen=True)
class Recipe:
    """Declaration of a recipe.

    Attributes
    ----------
    name : str
        Name in the reference pipeline, e.g. ``muse_exp_combine``.
    raw_tag : str
        Tag of the main input.
    parameters : tuple of Parameter
        In the order of the reference pipeline.
    """

    name: str
    raw_tag: str
    parameters: tuple[Parameter, ...]

    def resolve(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Complete and check parameter values.

        Raises
        ------
        InputError
            If a name is unknown or a value does not fit.
        """
        known = {p.name: p for p in self.parameters}
        unknown = [name for name in given if name not in known]
        if unknown:
            raise InputError(f"{self.name} has no parameter {', '.join(unknown)}; it has {', '.join(known)}")
        return {
            p.name: p.check(given[p.name]) if given.get(p.name) is not None else p.default
            for p in self.parameters
        }
