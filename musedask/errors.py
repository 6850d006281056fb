"""Errors that a user can act on.  The command line prints their message, without a traceback."""

from __future__ import annotations

from typing import Any


class MusedaskError(Exception):
    """Base of all errors that are explained to the user in one message."""


class InputError(MusedaskError):
    """An input file or value is missing, damaged or does not fit the others."""


class OutputExistsError(MusedaskError):
    """The output is there already and ``overwrite`` was not given."""


class PlanError(MusedaskError):
    """No plan fits the memory limit, the disk or the data."""


class StoreError(MusedaskError):
    """A store or an interrupted run does not belong to these inputs and parameters."""


class ComputeError(MusedaskError):
    """Some tasks failed after all retries; the finished ones are kept."""


class RecipeError(MusedaskError):
    """Calls of a recipe failed; those that succeeded are finished and kept.

    Attributes
    ----------
    result : musedask.calib.engine.Products or None
        What was made all the same, and the records of all calls; None if there were no calls.
    """

    def __init__(self, message: str, result: Any = None) -> None:
        super().__init__(message)
        self.result = result
