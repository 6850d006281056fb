"""Simulated data with their truth."""

from __future__ import annotations

from .pixtables import SimulatedExposure, SimulatedSet, simulate_pixtables
from .scene import Background, CubeScene, LineRegion, Scene, SceneLike, Star, default_scene, scene_from_dict

__all__ = [
    "Background",
    "CubeScene",
    "LineRegion",
    "Scene",
    "SceneLike",
    "SimulatedExposure",
    "SimulatedSet",
    "Star",
    "default_scene",
    "scene_from_dict",
    "simulate_pixtables",
]
