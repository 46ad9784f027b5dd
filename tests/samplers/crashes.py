"""A run that dies at a chosen write, as one that is killed does, but in this process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def killed_at(moment: int, patched: pytest.MonkeyPatch, *, half_written: bool) -> None:
    """Dies at the given write or rename of the run, before it or in its midst."""
    left = [moment]
    pwrite, replace = os.pwrite, Path.replace

    def dying(action: Callable, *arguments: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            if half_written and action is pwrite:
                pwrite(arguments[0], bytes(arguments[1])[:3], arguments[2])
            raise Killed
        return action(*arguments)

    patched.setattr(os, "pwrite", lambda *a: dying(pwrite, *a))
    patched.setattr(Path, "replace", lambda *a: dying(replace, *a))


def until_done(run: Callable[[], object], *, steps: int, half_written: bool = True) -> int:
    """Runs again and again, each time dying `steps` writes further on; returns how often it died."""
    for attempt in range(1000):
        with pytest.MonkeyPatch.context() as patched:
            killed_at(attempt * steps, patched, half_written=half_written)
            try:
                run()
            except Killed:
                continue
            return attempt
    raise AssertionError("never done")
