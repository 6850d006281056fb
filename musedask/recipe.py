"""What a recipe is called, takes and makes, declared once.

The declaration gives the options of the command line, the arguments of esorex, the
``PRO REC1 PARAMi`` cards of the products and the reference pages.  The declarations are in
`musedask.recipes`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .errors import InputError

#: how the files of a tag are numbered and which raw files they are said to come from, see `Product`
FrameMode = Literal["master", "dateobs", "sequence", "subset", "all"]


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
    minimum, maximum : float or None
        Allowed range of a number, both ends included.
    expert : bool
        Whether the reference hides it from its help.
    """

    name: str
    type: type
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    expert: bool = False

    def check(self, value: Any) -> Any:
        """Convert a value to the parameter's type.

        Raises
        ------
        InputError
            If the value is of the wrong type, outside the range, or not among the choices.
        """
        if self.type is bool and isinstance(value, str):
            if value.lower() not in ("true", "false"):
                raise InputError(f"parameter {self.name}: {value!r} found, expected true or false")
            return value.lower() == "true"
        try:
            if self.type is int and isinstance(value, float) and not value.is_integer():
                raise ValueError
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
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        if self.type in (int, float) and not low <= converted <= high:
            raise InputError(f"parameter {self.name}: {value} found, expected {low:g} to {high:g}")
        return converted

    def to_card(self, value: Any) -> str:
        """Write a value as the reference pipeline does in ``PRO REC1 PARAMi VALUE``: numbers with six digits."""
        if self.type is bool:
            return "true" if value else "false"
        if self.type is float:
            return f"{value:g}"
        return str(value)

    def comment_of_card(self) -> str:
        """The comment of ``PRO REC1 PARAMi VALUE``, which tells the default."""
        text = self.to_card(self.default)
        return f"Default: '{text}'" if self.type is str else f"Default: {text}"

    def to_option(self, value: Any) -> str:
        """Write a value as an option of esorex, ``--name=value``, with every digit."""
        if self.type is float:
            return f"--{self.name}={float(value)!r}"
        return f"--{self.name}={self.to_card(value)}"

    def values_text(self) -> str:
        """What a value may be: ``none, check, correct``, ``-1 to 24``, ``number``, ..."""
        if self.choices:
            return ", ".join(self.choices)
        text = {str: "text", int: "whole number", float: "number", bool: "true or false"}[self.type]
        if self.minimum is not None and self.maximum is not None:
            return f"{self.minimum:g} to {self.maximum:g}"
        if self.minimum is not None:
            return f"{text} >= {self.minimum:g}"
        return text if self.maximum is None else f"{text} <= {self.maximum:g}"


@dataclass(frozen=True)
class Input:
    """A kind of frames that a recipe takes.

    Attributes
    ----------
    tag : str
        Category in the set of frames, e.g. ``MASTER_BIAS``.
    group : str
        ``raw`` for what a recipe works on, ``calib`` for what it needs for that.
    minimum : int
        Least number, for each IFU where the recipe works on one.
    maximum : int or None
        Largest number, None for any.
    listed : bool
        Whether the help of the reference names it.
    """

    tag: str
    group: Literal["raw", "calib"]
    minimum: int = 0
    maximum: int | None = None
    listed: bool = True

    def count_text(self) -> str:
        """The numbers that are allowed: ``1``, ``3 or more``, ``0 or 1``, ``any number``."""
        if self.maximum is None:
            return f"{self.minimum} or more" if self.minimum else "any number"
        if self.minimum == self.maximum:
            return str(self.minimum)
        return " or ".join(map(str, range(self.minimum, self.maximum + 1)))


@dataclass(frozen=True)
class Product:
    """A kind of files that a recipe makes.

    Attributes
    ----------
    tag : str
        ``PRO CATG``, and the beginning of the name.
    mode : str
        ``master``: one file, without a counter in its name; others are numbered.  ``dateobs``: made of
        the raw files of one exposure; ``sequence``, ``subset``: several in a row, of parts of the input;
        ``all``: of all raw files.
    when : str or None
        What it depends on, None if it is always made: a parameter that must be true
        (``samples``) or false (``lampwise=false``), a value that a list must contain (``save=cube``,
        ``skymethod=model|simple``), a few words about the data; several of these with ``" and "`` between them, and
        alternatives with ``" or "``, which binds closer.
    per_ifu : bool
        Whether there is one for each IFU.
    listed_as : str or None
        Tag that the help of the reference has for it, if that is another one; empty if the help does not name it.
    """

    tag: str
    mode: FrameMode = "master"
    when: str | None = None
    per_ifu: bool = False
    listed_as: str | None = None

    def conditions(self) -> list[list[tuple[str, tuple[str, ...] | None]]]:
        """What it depends on: all of these, and of each any of its alternatives.

        Returns
        -------
        list of list of (str, tuple of str or None)
            Name of a parameter and the values of which it must have one, without values a parameter that must be
            true; or a few words and None.
        """
        found: list[list[tuple[str, tuple[str, ...] | None]]] = []
        for piece in self.when.split(" and ") if self.when else ():
            alternatives: list[tuple[str, tuple[str, ...] | None]] = []
            for text in piece.split(" or "):
                name, _, values = text.partition("=")
                alternatives.append(
                    (text, None) if " " in text else (name, tuple(values.split("|") if values else ()))
                )
            found.append(alternatives)
        return found

    def expected(self, values: Mapping[str, Any]) -> bool | None:
        """Whether a recipe with these parameters makes it: yes, no, or None if that depends on the data."""
        result: bool | None = True
        for alternatives in self.conditions():
            found = [_holds(values[name], allowed) if allowed is not None else None for name, allowed in alternatives]
            if True in found:
                continue
            if None not in found:
                return False
            result = None
        return result

    def file_name(self, ifu: int | None = None, number: int = 1) -> str:
        """Name of the file of an IFU; `number` counts those of a recipe that makes several."""
        counter = "" if self.mode == "master" else f"_{number:04d}"
        return f"{self.tag}{counter}{f'-{ifu:02d}' if self.per_ifu and ifu is not None else ''}.fits"


def _holds(value: Any, allowed: tuple[str, ...]) -> bool:
    """Whether a parameter is true, or has one of some values; a text is a list of values."""
    if not allowed:
        return bool(value)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return any(part in allowed for part in text.replace(" ", "").split(","))


@dataclass(frozen=True)
class Recipe:
    """Declaration of a recipe.

    Attributes
    ----------
    name : str
        Name in the reference pipeline, e.g. ``muse_exp_combine``.
    synopsis : str
        What it does, in one line.
    inputs : tuple of Input
        The raw ones first.
    products : tuple of Product
    parameters : tuple of Parameter
        In the order of the reference pipeline.
    alternative : tuple of Input
        What takes the place of `inputs` as soon as frames of its raw tags are given.
    standard_ifu : int or None
        IFU that all others are compared with, where a call works on all of them: it must be among them.
    """

    name: str
    synopsis: str
    inputs: tuple[Input, ...]
    products: tuple[Product, ...]
    parameters: tuple[Parameter, ...]
    alternative: tuple[Input, ...] = ()
    standard_ifu: int | None = None

    @property
    def raw_tag(self) -> str:
        """Tag of the main input."""
        return self.inputs[0].tag

    @property
    def raw_tags(self) -> tuple[str, ...]:
        """Tags of what it works on: frames of at least one of them must be there; none if it can do without."""
        raws = (i for i in (*self.inputs, *self.alternative) if i.group == "raw")
        return tuple(i.tag for i in raws if i.minimum or i.maximum is None)

    @property
    def exposures(self) -> bool:
        """Whether it works on images of the detectors, one extension for each IFU, and not on what is made of them."""
        return not self.raw_tag.startswith(("PIXTABLE_", "IMAGE_FOV"))

    @property
    def per_ifu(self) -> bool:
        """Whether it works on one IFU at a time."""
        return any(p.name == "nifu" for p in self.parameters)

    def input(self, tag: str) -> Input | None:
        """The input of a tag, or None."""
        return next((i for i in (*self.inputs, *self.alternative) if i.tag == tag), None)

    def parameter(self, name: str) -> Parameter:
        """The parameter of a name.

        Raises
        ------
        KeyError
            If the recipe does not have it.
        """
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        raise KeyError(f"{self.name} has no parameter {name}")

    def product(self, tag: str) -> Product:
        """The product of a tag.

        Raises
        ------
        KeyError
            If the recipe does not make it.
        """
        for product in self.products:
            if product.tag == tag:
                return product
        raise KeyError(f"{self.name} makes no {tag}")

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
