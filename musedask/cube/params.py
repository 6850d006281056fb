"""The parameters of the recipes that make cubes as one checked object."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import InputError
from ..recipe import Parameter

#: resampling methods and their numbers in `kernels`
METHODS = {"nearest": 0, "linear": 1, "quadratic": 2, "renka": 3, "drizzle": 4, "lanczos": 5}

#: options that the reference does not have, all off by default
EXTRA = (
    Parameter(
        "cr_per_exposure",
        bool,
        False,
        "Reject cosmic rays along the slices of each exposure, not those of the first one.",
    ),
    Parameter("nearest_corrected", bool, False, "Use true distances in the nearest method."),
    Parameter("weight_map", bool, False, "Also save the sum of weights and the number of pixels per voxel."),
)


@dataclass(frozen=True)
class ResampleParams:
    """Everything that decides the numbers of a cube, besides the data and the output WCS.

    The attributes are the recipe parameters of the same name (see `musedask.recipes.EXP_COMBINE`); `pixfrac`
    is expanded to three values (x, y, wavelength).
    """

    resample: str
    dx: float
    dy: float
    dlambda: float
    crtype: str
    crsigma: float
    rc: float
    pixfrac: tuple[float, float, float]
    ld: int
    lambdamin: float
    lambdamax: float
    weight: str
    cr_per_exposure: bool = False
    nearest_corrected: bool = False
    weight_map: bool = False

    @classmethod
    def from_values(cls, values: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> ResampleParams:
        """Build from the resolved values of a recipe.

        Raises
        ------
        InputError
            If `pixfrac` is not 1 to 3 positive numbers or the wavelength range is empty.
        """
        names = {f.name for f in fields(cls)}
        known = {name: value for name, value in values.items() if name in names}
        known["pixfrac"] = parse_pixfrac(values["pixfrac"])
        known["ld"] = values["ld"] if values["ld"] > 0 else 1
        known.setdefault("weight", "none")
        for name in ("dx", "dy", "dlambda"):
            if values[name] < 0:
                raise InputError(f"parameter {name}: {values[name]:g} found, expected a step, or 0 for the natural one")
        if values["rc"] <= 0:
            raise InputError(f"parameter rc: {values['rc']:g} found, expected a radius above 0")
        if not values["lambdamin"] < values["lambdamax"]:
            raise InputError(
                f"empty wavelength range: lambdamin {values['lambdamin']:g} is not below "
                f"lambdamax {values['lambdamax']:g}"
            )
        return cls(**known, **{p.name: p.check((extra or {}).get(p.name, p.default)) for p in EXTRA})

    @property
    def halo(self) -> int:
        """Voxels beyond a chunk, in each direction, that its result depends on."""
        reach = 0 if self.resample == "nearest" else self.ld
        return reach + (1 if self.crsigma > 0 else 0)

    @property
    def reach(self) -> int:
        """Voxels from which a voxel takes rows."""
        return 0 if self.resample == "nearest" else self.ld

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for fingerprints."""
        return asdict(self)


def parse_pixfrac(text: str) -> tuple[float, float, float]:
    """Expand the text of ``pixfrac`` to (x, y, wavelength).

    Raises
    ------
    InputError
        If it is not one to three positive numbers.
    """
    try:
        values = [float(part) for part in str(text).split(",") if part.strip()]
    except ValueError as error:
        raise InputError(f"parameter pixfrac: {text!r} found, expected 1 to 3 numbers") from error
    if not 1 <= len(values) <= 3 or not all(0 < value < math.inf for value in values):
        raise InputError(f"parameter pixfrac: {text!r} found, expected 1 to 3 positive numbers")
    if len(values) == 1:
        return values[0], values[0], values[0]
    if len(values) == 2:
        return values[0], values[0], values[1]
    return values[0], values[1], values[2]
