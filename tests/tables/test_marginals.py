"""Latent answers in data units: what no other file of this folder asks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flexgen.tables.columns import ColumnMaps, fit_column
from flexgen.tables.conditional import TableMarginals
from flexgen.tables.members import LatentMarginals

F = torch.float64


def standard(maps: ColumnMaps, rows: int, mean: float = 0.0) -> TableMarginals:
    """A standard normal latent, shifted, for every numeric column."""
    zero = torch.zeros(rows, len(maps.numeric), 1, dtype=F)
    return TableMarginals(maps, LatentMarginals(zero, zero + mean, zero + 0.3, torch.zeros(rows, 0, 1, dtype=F)))


def test_a_constant_is_certain_and_anything_else_impossible() -> None:
    maps = ColumnMaps([fit_column(np.full(20, 3.0)), fit_column(np.linspace(0, 1, 50) ** 2)])
    x = torch.tensor([[3.0, 0.5], [77.0, 0.5]], dtype=F)
    log_prob = standard(maps, 2).log_prob(x)
    assert log_prob[:, 0].tolist() == [0.0, -torch.inf]
    assert torch.isfinite(log_prob[:, 1]).all()


@pytest.mark.parametrize("scale", [1.0, 1000.0, 1e-3])
@pytest.mark.parametrize(("mean", "at_the_atom"), [(-2.0, True), (1.0, False)])
def test_the_mode_does_not_depend_on_units(scale: float, mean: float, at_the_atom: bool) -> None:
    """Half of the rows are zero: a latent far below is zero, a latent far above is not."""
    values = np.concatenate([np.zeros(300), np.random.default_rng(0).gamma(2.0, size=300)]) * scale
    maps = ColumnMaps([fit_column(values)])
    assert maps.columns[0].levels == (0.0,)
    mode = float(standard(maps, 1, mean).mode())
    assert (mode == 0) == at_the_atom
    if not at_the_atom:
        assert mode / scale == pytest.approx(float(maps.inverse(torch.tensor([[mean]], dtype=F))) / scale)


@pytest.mark.parametrize("junk", [99.0, -5.0, torch.inf, 1e300, torch.nan])
def test_codes_at_unread_places_may_be_anything(junk: float) -> None:
    maps = ColumnMaps([fit_column(np.array([0.0, 1, 2]), num_categories=3)])
    log_probs = torch.tensor([[[0.2, 0.3, 0.5]]], dtype=F).log()
    empty = torch.zeros(1, 0, 1, dtype=F)
    TableMarginals(maps, LatentMarginals(empty, empty, empty, log_probs)).log_prob(torch.tensor([[junk]], dtype=F))
