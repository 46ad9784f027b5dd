"""The processes that share a job: one alone, or those that torchrun started.

They tell each other small things (which windows are written) through objects, never frames.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from flexgen.errors import FlexgenError

__all__ = ["Team"]

Outcome = TypeVar("Outcome")

_PATIENCE = timedelta(days=1)  # a window of a large network may take long, and a dead process is noticed at once


class Team:
    """The processes of this job, in step with each other at every call.

    Outside torchrun a team of one, for which nothing is set up. Under torchrun the default process group is used, or
    made where there is none; messages go over gloo, whatever the group's own backend.
    """

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        self._group: Any = None
        if dist.is_available() and not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            dist.init_process_group("gloo", timeout=_PATIENCE)
        if dist.is_available() and dist.is_initialized():
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
        if self.size > 1:
            self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def each(self, action: Callable[[], Outcome]) -> list[Outcome]:
        """Has every process perform its own action and gives each of them all the results, by rank.

        Raises:
            FlexgenError: what any of them raised, in all of them, so that none waits for one that has given up.
        """
        if self.size == 1:
            return [action()]
        mine: tuple[Any, FlexgenError | None]
        try:
            mine = action(), None
        except FlexgenError as error:
            mine = None, error
        outcomes: list[Any] = [None] * self.size
        dist.all_gather_object(outcomes, mine, group=self._group)
        if mine[1] is not None:
            raise mine[1]
        for _, theirs in outcomes:
            if theirs is not None:
                raise theirs
        return [result for result, _ in outcomes]

    def first(self, action: Callable[[], Outcome]) -> Outcome:
        """Has the first process alone perform an action, and gives all of them its result."""
        results: list[Any] = self.each(lambda: action() if self.is_first else None)
        result: Outcome = results[0]
        return result

    def close(self) -> None:
        """Ends the messages of this job; the default group stays."""
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None
