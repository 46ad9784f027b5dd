"""Spaces: enumeration, validation, serialisation."""

import json
import math

import pytest
import torch

import flexgen as fg
from flexgen.errors import SpaceError

MIXED = fg.Space(
    (fg.Site("real", name="mass"), fg.Site("integer", name="count"), fg.Site("categorical", 3, name="kind"))
)


def test_states_enumerate_row_major():
    space = fg.Space.categorical([2, 3])
    assert space.num_states == 6
    assert space.states().tolist() == [list(state) for state in space.iter_states()]
    assert fg.Space.binary(0).states().shape == (1, 0)
    assert fg.Space.binary(1).states().tolist() == [[0], [1]]


def test_round_trip_through_json():
    for space in (MIXED, fg.Space.real(3, shape=(2, 4))):
        assert fg.Space.from_dict(json.loads(json.dumps(space.to_dict()))) == space
    assert repr(MIXED) == "Space(3 sites: 1 real, 1 integer, 1 categorical)"
    assert MIXED.names == ("mass", "count", "kind")


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ([math.nan, 0, 0], "x: holds nan at row 1, site 'mass'. This real site takes a finite number"),
        ([0, math.inf, 0], "x: holds inf at row 1, site 'count'"),
        ([0, 0.5, 0], "x: holds 0.5 at row 1, site 'count'. This integer site takes a whole number"),
        ([0, 0, 1.5], "x: holds 1.5 at row 1, site 'kind'. This categorical site takes a whole number"),
        ([0, 0, 3], r"x: holds 3.0 at row 1, site 'kind'. .* a category code, 0 to K-1 \(K=3\)"),
        ([0, 0, -1], "x: holds -1.0 at row 1, site 'kind'"),
    ],
)
def test_values_outside_the_space_are_named(row, text):
    x = torch.tensor([[0.0, -7, 2], row])
    with pytest.raises(SpaceError, match=text):
        MIXED.validate(x)
    MIXED.validate(x, where=torch.tensor([[True] * 3, [False] * 3]))
    MIXED.validate(x[:1])


def test_shapes_are_checked():
    with pytest.raises(SpaceError, match=r"x: has shape \(3,\)\. Pass shape \[B, 3\]"):
        MIXED.validate(torch.zeros(3))
    with pytest.raises(SpaceError, match=r"Pass shape \[B, 3, 2, 4\]"):
        fg.Space.real(3, shape=(2, 4)).validate(torch.zeros(5, 3))


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: fg.Site("ordinal"), "kind: is 'ordinal'"),
        (lambda: fg.Site("categorical"), "num_categories: is 0"),
        (lambda: fg.Site("real", 2), "num_categories: is 2 for a real site"),
        (lambda: fg.Space((fg.Site(), fg.Site(shape=(2,)))), "sites: have events of different shapes"),
        (lambda: fg.Space.real(2).states(), "space: is not finite"),
    ],
)
def test_impossible_spaces_are_refused(build, text):
    with pytest.raises(SpaceError, match=text):
        build()
