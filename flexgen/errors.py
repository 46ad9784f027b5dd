"""Errors of flexgen: every one names the argument, the value it had, and what would fix it.

All are `ValueError`s, so ``except ValueError`` catches whatever bad input a caller passed.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "FlexgenError",
    "PlanError",
    "QueryError",
    "SpaceError",
    "UnsupportedQueryError",
]


class FlexgenError(ValueError):
    """Base of all errors about bad input.

    Args:
        argument: name of the argument, as the caller wrote it.
        problem: what is wrong with it, including the offending value.
        fix: what the caller can do about it.
    """

    def __init__(self, argument: str, problem: str, fix: str) -> None:
        super().__init__(f"{argument}: {problem}. {fix}")
        self.argument = argument
        self.problem = problem
        self.fix = fix

    def __reduce__(self) -> tuple[type[FlexgenError], tuple[str, str, str]]:
        return type(self), (self.argument, self.problem, self.fix)


class QueryError(FlexgenError):
    """A query whose target and observed sets are no query over the given sites."""


class SpaceError(FlexgenError):
    """A value, or an array of values, outside the space of the sites."""


class PlanError(FlexgenError):
    """A plan of a long video that no sampler could follow, or an argument that no plan can serve."""


class DataError(FlexgenError):
    """A data set (a data frame, a folder) that a model cannot be fitted to or applied to."""


class UnsupportedQueryError(FlexgenError):
    """A query that this conditional cannot answer, for example the density of a sampler without one."""


class CheckpointError(FlexgenError):
    """A checkpoint that is incomplete, damaged, or belongs to another model or space."""


class ConfigError(FlexgenError):
    """A configuration that names an unknown option or a target outside the allow-list."""
