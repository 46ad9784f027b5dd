"""The processes that share a job: one alone, or those that torchrun started.

They tell each other small things (rows drawn, which windows are written, what went wrong) through gloo, on a group
beside the one that accelerate trains over: a message may wait for hours of work, and NCCL gives up after ten minutes.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

__all__ = ["Processes", "is_shared", "stays_here"]

Outcome = TypeVar("Outcome")
Item = TypeVar("Item")

_REACH = "_reach"  # of an error: whom it has reached
_PATIENCE = timedelta(days=1)  # a window of a large network may take long, and a dead process is noticed at once


class Processes:
    """The processes of this job, in step with each other: all of them make the same calls in the same order.

    Outside torchrun one alone, for which nothing is set up. Under torchrun the default process group is used, or made
    where there is none.

    Attributes:
        rank: of this process, 0 for the first.
        size: how many there are.
        local_rank: of this process among those of its machine.
    """

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        self.local_rank = _number("LOCAL_RANK", 0)
        launched = _number("WORLD_SIZE", 1) > 1
        if not launched and "torch.distributed" not in sys.modules:
            return  # nobody can have made a group, and torch need not be imported to see it
        import torch
        import torch.distributed as dist

        if launched and dist.is_available() and not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=_PATIENCE)
            atexit.register(_leave)
        if dist.is_available() and dist.is_initialized():
            self.rank, self.size = dist.get_rank(), dist.get_world_size()

    @classmethod
    def alone(cls) -> Processes:
        """This process by itself, whoever else there is."""
        processes = cls.__new__(cls)
        processes.rank, processes.size, processes.local_rank = 0, 1, 0
        return processes

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def each(self, action: Callable[[], Outcome]) -> list[Outcome]:
        """Has every process perform its own action and gives each of them all the results, by rank.

        Calls may be nested: an error that one process meets between two calls goes out with the outer one, and reaches
        the others in whichever call they are.

        Raises:
            Exception: what any of them raised, in all of them, so that none waits for one that has given up.
        """
        if self.size == 1:
            return [action()]
        import torch.distributed as dist

        mine: tuple[Any, BaseException | None]
        try:
            mine = action(), None
        except (Exception, KeyboardInterrupt) as error:
            if _REACH in vars(error):
                raise
            mine = None, error
        outcomes: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(outcomes, _sendable(mine), group=_messages())
        except Exception as gone:
            raise mine[1] or gone from gone
        errors = [mine[1], *(theirs for _, theirs in outcomes)]
        if (first := next((error for error in errors if error is not None), None)) is not None:
            raise _shared(first)
        return [result for result, _ in outcomes]

    def together(self, action: Callable[[], Outcome]) -> Outcome:
        """Has every process perform an action, and gives each of them its own result once all are done."""
        mine: list[Outcome] = []
        self.each(lambda: mine.append(action()))
        return mine[0]

    def first(self, action: Callable[[], Outcome]) -> Outcome:
        """Has the first process alone perform an action, and gives all of them its result."""
        results: list[Any] = self.each(lambda: action() if self.is_first else None)
        result: Outcome = results[0]
        return result

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's items: every `size`-th."""
        return items[self.rank :: self.size]

    def map(self, function: Callable[[Item], Outcome], items: Sequence[Item]) -> list[Outcome]:
        """The function of every item, in order, each computed by one of the processes and given to all of them."""
        results: list[Any] = [None] * len(items)
        for rank, part in enumerate(self.each(lambda: [function(item) for item in self.share(items)])):
            results[rank :: self.size] = part
        return results


def is_shared(error: BaseException) -> bool:
    """Whether all processes have met this error."""
    return bool(vars(error).get(_REACH) == "all")


@contextlib.contextmanager
def stays_here() -> Iterator[None]:
    """An error within is not sent to the others, which are in other calls than those of `Processes`."""
    try:
        yield
    except BaseException as error:
        vars(error).setdefault(_REACH, "one")
        raise


def _shared(error: BaseException) -> BaseException:
    vars(error)[_REACH] = "all"
    return error


# Default group -> the group of messages beside it. Nothing else may hold either: a group of gloo that outlives
# destroy_process_group() ends the process by an abort.
_BESIDE: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def _messages() -> Any:
    import torch.distributed as dist

    if dist.group.WORLD not in _BESIDE:
        _BESIDE[dist.group.WORLD] = dist.new_group(backend="gloo", timeout=_PATIENCE)
    return _BESIDE[dist.group.WORLD]


def _leave() -> None:
    """Whoever made the default group ends it, if nobody has."""
    import torch.distributed as dist

    _BESIDE.clear()
    if dist.is_initialized():
        dist.destroy_process_group()


def _sendable(outcome: tuple[Any, BaseException | None]) -> tuple[Any, BaseException | None]:
    """An error of a class that cannot be sent goes as its text."""
    error = outcome[1]
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return None, RuntimeError(f"{type(error).__name__}: {error}")
    return outcome


def _number(variable: str, otherwise: int) -> int:
    value = os.environ.get(variable, "")
    return int(value) if value.isdigit() else otherwise
