"""Errors that a user can act on.  The command line prints their message, without a traceback."""

from __future__ import annotations


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
