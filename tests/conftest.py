"""What every test finds."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

# Before torch is there. On a machine that is busy otherwise, two threads of a small network wait a hundred times longer
# for each other than they compute.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")


@pytest.fixture(autouse=True, scope="session")
def ctrl_c_is_heard() -> Iterator[None]:
    """Also where the tests run in the background, whose processes ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
