"""Simulated data with their truth: pixel tables, and the raw exposures of whole nights.

Everything is imported on first use, so that starting is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .association import Association, associate, read_association
    from .cubescene import CubeScene
    from .detector import Detector
    from .exposure import expected_rate, observe
    from .fields import astrometric_field, faint_field, nebula_field, source_table, standard_star
    from .night import (
        SimulatedNight,
        night_scene,
        scenes_of,
        simulate_night,
        simulate_plans,
    )
    from .optics import MODES, IfuOptics, Instrument, Light
    from .pixtables import SimulatedExposure, SimulatedSet, simulate_pixtables
    from .plan import Conditions, ExposurePlan, ObservingBlock
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
        scene_from_dict,
    )
    from .scenefile import load_scene, save_scene
    from .schedule import Target, plan_night
    from .skylight import SkyLight
    from .spectra import BlackBody, Tabulated, WhiteDwarf
    from .statics import write_statics
    from .truth import NightTruth

_WHERE = {
    name: module
    for module, names in {
        "association": ("Association", "associate", "read_association"),
        "cubescene": ("CubeScene",),
        "detector": ("Detector",),
        "exposure": ("expected_rate", "observe"),
        "fields": ("astrometric_field", "faint_field", "nebula_field", "source_table", "standard_star"),
        "night": (
            "SimulatedNight", "night_scene", "scenes_of", "simulate_night", "simulate_plans",
        ),
        "optics": ("MODES", "IfuOptics", "Instrument", "Light"),
        "pixtables": ("SimulatedExposure", "SimulatedSet", "simulate_pixtables"),
        "plan": ("Conditions", "ExposurePlan", "ObservingBlock"),
        "scene": (
            "Background", "Galaxy", "LineRegion", "Nebula", "NebulaLine", "Scene", "SceneLike", "Star",
            "default_scene", "scene_from_dict",
        ),
        "scenefile": ("load_scene", "save_scene"),
        "schedule": ("Target", "plan_night"),
        "skylight": ("SkyLight",),
        "spectra": ("BlackBody", "Tabulated", "WhiteDwarf"),
        "statics": ("write_statics",),
        "truth": ("NightTruth",),
    }.items()
    for name in names
}  # fmt: skip

__all__ = [
    "MODES",
    "Association",
    "Background",
    "BlackBody",
    "Conditions",
    "CubeScene",
    "Detector",
    "ExposurePlan",
    "Galaxy",
    "IfuOptics",
    "Instrument",
    "Light",
    "LineRegion",
    "Nebula",
    "NebulaLine",
    "NightTruth",
    "ObservingBlock",
    "Scene",
    "SceneLike",
    "SimulatedExposure",
    "SimulatedNight",
    "SimulatedSet",
    "SkyLight",
    "Star",
    "Tabulated",
    "Target",
    "WhiteDwarf",
    "associate",
    "astrometric_field",
    "default_scene",
    "expected_rate",
    "faint_field",
    "load_scene",
    "nebula_field",
    "night_scene",
    "observe",
    "plan_night",
    "read_association",
    "save_scene",
    "scene_from_dict",
    "scenes_of",
    "simulate_night",
    "simulate_pixtables",
    "simulate_plans",
    "source_table",
    "standard_star",
    "write_statics",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
