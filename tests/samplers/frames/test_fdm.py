"""FDM's index sets, as the authors' code yields them (plai-group/flexible-video-diffusion-modeling, commit 4c3d78b).

Keys are (scheme, N, n_obs, K); S = K // 2. A line holds the targets and the observed frames of one window. Frames that
the code names twice in a window are written once.
"""

from __future__ import annotations

import hashlib

import pytest

from flexgen.errors import PlanError
from samplers import frames
from samplers.frames import Plan

TABLES = {
    ("autoregressive", 14, 3, 6): """
        3 4 5 | 0 1 2
        6 7 8 | 3 4 5
        9 10 11 | 6 7 8
        12 13 | 9 10 11
    """,
    ("autoregressive", 13, 0, 5): """
        0 1 2 3 4 |
        5 6 | 2 3 4
        7 8 | 4 5 6
        9 10 | 6 7 8
        11 12 | 8 9 10
    """,
    ("long-range", 16, 5, 8): """
        5 6 7 8 | 1 2 3 4
        9 10 11 12 | 3 4 7 8
        13 14 15 | 3 4 11 12
    """,
    ("long-range", 14, 0, 6): """
        0 1 2 3 4 5 |
        6 7 8 | 3 4 5
        9 10 11 | 4 5 8
        12 13 | 4 5 11
    """,
    ("hierarchy-2", 24, 4, 8): """
        4 10 17 23 | 0 1 2 3
        5 6 7 8 | 3 4 10 17
        9 11 12 13 | 7 8 10 17
        14 15 16 18 | 12 13 17 23
        19 20 21 22 | 16 17 18 23
    """,
    ("hierarchy-2", 20, 0, 6): """
        0 3 7 11 15 19 |
        1 2 4 | 0 3 7
        5 6 8 | 4 7 11
        9 10 12 | 8 11 15
        13 14 16 | 12 15 19
        17 18 | 15 16 19
    """,
    ("hierarchy-2", 40, 36, 20): """
        36 37 38 39 | 0 3 7 11 15 19 23 27 31 35
    """,
    ("hierarchy-3", 30, 4, 8): """
        4 12 21 29 | 0 1 2 3
        6 8 10 13 | 3 4 12 21
        15 17 19 22 | 12 13 21 29
        24 26 28 | 19 21 22 29
        5 7 9 | 3 4 6 8 10
        11 14 16 | 10 12 13 15 17
        18 20 23 | 17 19 21 22 24
        25 27 | 23 24 26 28
    """,
    ("hierarchy-3", 26, 9, 7): """
        9 17 25 | 0 2 5 8
        11 13 15 | 8 9 17 25
        18 20 22 | 13 15 17 25
        24 | 18 20 22 25
        10 12 14 | 9 11 13 15
        16 19 | 14 15 17 18 20
        21 23 | 19 20 22 24
    """,
    ("hierarchy-4", 34, 6, 8): """
        6 15 24 33 | 0 1 3 5
        10 14 18 22 | 5 6 15 24
        26 30 | 18 22 24 33
        7 9 11 | 5 6 10 14 15
        13 16 19 | 11 14 15 18 22
        21 23 25 | 18 19 22 24 26
        27 29 31 | 25 26 30 33
        8 12 | 6 7 9 10 11 13
        17 20 | 15 16 18 19 21 22
        28 32 | 27 29 30 31 33
    """,
    ("hierarchy-5", 40, 5, 10): """
        5 13 22 31 39 | 0 1 2 3 4
        10 15 20 25 30 | 4 5 13 22 31
        35 | 22 25 30 31 39
        7 9 11 14 16 | 5 10 13 15 20
        18 21 23 26 28 | 16 20 22 25 30
        32 34 36 38 | 28 30 31 35 39
        6 8 12 | 4 5 7 9 10 11 13
        17 19 24 | 16 18 20 21 22 23 25
        27 29 33 | 25 26 28 30 31 32 34
        37 | 34 35 36 38 39
    """,
}

# Number of windows, and the start of SHA-256 over lines as those above, joined by newlines.
DIGESTS = {
    ("autoregressive", 300, 36, 20): (27, "ff85074f04faa1ab"),
    ("autoregressive", 1000, 36, 20): (97, "5db90c1cbe06d4f4"),
    ("autoregressive", 500, 0, 20): (49, "2721cabbb9da78a9"),
    ("long-range", 300, 36, 20): (27, "507c0ab36e19f984"),
    ("long-range", 1000, 36, 20): (97, "e25c8d0cc6a4d88a"),
    ("long-range", 500, 0, 20): (49, "752dd2270fcb3319"),
    ("hierarchy-2", 300, 36, 20): (27, "0d2e2571cdd323d6"),
    ("hierarchy-2", 1000, 36, 20): (97, "69318b46446d8e15"),
    ("hierarchy-2", 500, 0, 20): (49, "d79d31198f9f7c57"),
    ("hierarchy-3", 300, 36, 20): (28, "4657475fc7483cec"),
    ("hierarchy-3", 1000, 36, 20): (97, "e91357dfd689c63c"),
    ("hierarchy-3", 500, 0, 20): (49, "777ecf86e99847b8"),
    ("hierarchy-4", 300, 36, 20): (28, "29df495c5f329306"),
    ("hierarchy-4", 1000, 36, 20): (98, "eac3294e958b2712"),
    ("hierarchy-4", 500, 0, 20): (50, "28cf292792d208bf"),
    ("hierarchy-5", 300, 36, 20): (34, "7b03d9cf8057aa7d"),
    ("hierarchy-5", 1000, 36, 20): (98, "332d757dbd8ca7f6"),
    ("hierarchy-5", 500, 0, 20): (59, "53458b51d30e0c76"),
}


def plan_of(scheme: str, num_frames: int, num_observed: int, window: int) -> Plan:
    if scheme.startswith("hierarchy-"):
        return frames.hierarchical(num_frames, range(num_observed), window, levels=int(scheme[-1]))
    build = {"autoregressive": frames.autoregressive, "long-range": frames.long_range}[scheme]
    return build(num_frames, num_observed, window)


def lines(plan: Plan) -> list[str]:
    return [" ".join(map(str, w.target)) + " | " + " ".join(map(str, w.observed)) for w in plan.windows]


@pytest.mark.parametrize("case", TABLES, ids=str)
def test_windows_are_those_of_fdm(case: tuple[str, int, int, int]) -> None:
    plan = plan_of(*case)
    assert [line.rstrip() for line in lines(plan)] == [line.strip() for line in TABLES[case].strip().splitlines()]
    assert plan.name == case[0]


@pytest.mark.parametrize("case", DIGESTS, ids=str)
def test_long_plans_are_those_of_fdm(case: tuple[str, int, int, int]) -> None:
    plan = plan_of(*case)
    digest = hashlib.sha256("\n".join(lines(plan)).encode()).hexdigest()
    assert (len(plan.windows), digest[:16]) == DIGESTS[case]


@pytest.mark.parametrize(
    ("levels", "num_frames", "num_windows", "critical_path"),
    [
        *[(2, 300, 27, 27), (2, 1000, 97, 97), (2, 15000, 1497, 1497)],
        *[(3, 300, 28, 23), (3, 1000, 97, 88), (3, 15000, 1497, 1460)],
        *[(5, 300, 34, 12), (5, 1000, 98, 35), (5, 15000, 1498, 1209)],
    ],
)
def test_cost_of_hierarchies(levels: int, num_frames: int, num_windows: int, critical_path: int) -> None:
    plan = frames.hierarchical(num_frames, 36, 20, levels)
    assert (len(plan.windows), plan.critical_path) == (num_windows, critical_path)


@pytest.mark.parametrize(("num_frames", "num_windows"), [(300, 27), (1000, 97), (15000, 1497)])
def test_cost_of_serial_plans(num_frames: int, num_windows: int) -> None:
    for plan in (frames.autoregressive(num_frames, 36, 20), frames.long_range(num_frames, 36, 20)):
        assert len(plan.windows) == plan.critical_path == num_windows


def test_first_windows_of_300_frames() -> None:
    assert str(frames.autoregressive(300, 36).windows[1]) == "46-55 | 36-45"
    assert str(frames.long_range(300, 36).windows[2]) == "56-65 | 31-35, 51-55"
    first, second = frames.hierarchical(num_frames=300, observed=range(36), window=20, levels=3).windows[:2]
    assert first.target == (36, 65, 94, 123, 153, 182, 211, 241, 270, 299)
    assert first.observed == (0, 3, 7, 11, 15, 19, 23, 27, 31, 35)
    assert second.target == tuple(range(41, 87, 5))
    assert second.observed == (32, 33, 34, 35, 36, 65, 94, 123, 153, 182)


def test_where_the_code_of_fdm_stops_or_overflows() -> None:
    assert all(len(w) <= 2 for w in frames.long_range(12, 4, 2).windows)  # there: every frame that is done
    assert len(frames.hierarchical(12, 4, 3).windows) == 8  # there: division by S - 1 = 0
    assert frames.autoregressive(4, 0, 9).windows[0].target == (0, 1, 2, 3)  # there: frame 8 of 4


def test_other_given_frames() -> None:
    """No outside reference: what the rules here say, written out."""
    goal = frames.autoregressive(20, [0, 1, 2, 19], 8)
    assert [str(w) for w in goal.windows[:2]] == ["3-6 | 0-2, 19", "7-10 | 4-6, 19"]
    both_ends = frames.autoregressive(12, [5, 6], 6)
    assert [str(w) for w in both_ends.windows] == ["7-9 | 5-6", "10-11 | 7-9", "2-4 | 5-7", "0-1 | 2-4"]
    assert both_ends.critical_path == 3
    dense = frames.autoregressive(12, range(0, 12, 2), 6)
    assert [str(w) for w in dense.windows[:2]] == ["1, 3 | 0, 2, 4", "5, 7 | 3-4, 6, 8"]
    keyframes = frames.hierarchical(40, [0, 1, 20, 39], 8)
    assert keyframes.windows[0].observed == (0, 1, 20, 39)
    assert frames.hierarchical(40, range(0, 40, 4), 8).windows[0].target[0] == 1  # level 1 is left out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"levels": 1}, r"levels: is 1\. Pass at least 2\."),
        ({"window": 1}, r"window: is 1\. Pass at least 2\."),
        ({"window": 8, "num_targets": 8}, r"num_targets: is 8 of a window of 8\. Leave room to observe a frame\."),
        ({"observed": [3, 40]}, r"observed: holds frame 40\. Frames are numbered 0 to 29\."),
        ({"observed": [3, 3]}, r"observed: holds frame 3 twice\. Name each frame once\."),
        ({"observed": [-1]}, r"observed: holds frame -1\. Frames are numbered from 0\."),
        ({"observed": 3.5}, r"observed: is 3\.5\. Pass frame indices, for example range\(36\)\."),
        ({"num_frames": 0}, r"num_frames: is 0\. Pass at least 1\."),
    ],
)
def test_bad_arguments(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(PlanError, match=text):
        frames.hierarchical(**({"num_frames": 30, "observed": 4, "window": 8} | arguments))  # type: ignore[arg-type]
