"""Sets of frames as slots."""

from __future__ import annotations

import pytest
import torch

from flexgen.errors import QueryError
from flexgen.video.slots import gather_frames, members

CHOSEN = torch.tensor([[False, True, False, True, True], [True, False, False, False, False], [False] * 5])


def test_members_are_in_order_and_padded() -> None:
    index, taken = members(CHOSEN)
    assert index.tolist() == [[1, 3, 4], [0, 0, 0], [0, 0, 0]]
    assert taken.tolist() == [[True, True, True], [True, False, False], [False, False, False]]
    wide, taken = members(CHOSEN, 7)
    assert wide.shape == taken.shape == (3, 7)
    assert wide[0].tolist() == [1, 3, 4, 0, 0, 0, 0]
    assert [t.shape for t in members(CHOSEN[2:])] == [(1, 0), (1, 0)]
    assert [t.shape for t in members(CHOSEN[:0], 2)] == [(0, 2), (0, 2)]


def test_too_many_members_are_refused() -> None:
    with pytest.raises(QueryError, match="query: names 3 frames in a row, but a window holds 2"):
        members(CHOSEN, 2)


def test_frames_are_gathered_by_row() -> None:
    frames = torch.arange(30).view(3, 5, 2)
    index = torch.tensor([[4, 0], [1, 1], [2, 3]])
    assert gather_frames(frames, index)[:, :, 0].tolist() == [[8, 0], [12, 12], [24, 26]]
