"""Simulated data with their truth."""

from __future__ import annotations

from .cubescene import CubeScene
from .fields import astrometric_field, nebula_field, standard_star
from .pixtables import SimulatedExposure, SimulatedSet, simulate_pixtables
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
from .spectra import BlackBody, Tabulated, WhiteDwarf

__all__ = [
    "Background",
    "BlackBody",
    "CubeScene",
    "Galaxy",
    "LineRegion",
    "Nebula",
    "NebulaLine",
    "Scene",
    "SceneLike",
    "SimulatedExposure",
    "SimulatedSet",
    "Star",
    "Tabulated",
    "WhiteDwarf",
    "astrometric_field",
    "default_scene",
    "load_scene",
    "nebula_field",
    "save_scene",
    "scene_from_dict",
    "simulate_pixtables",
    "standard_star",
]
