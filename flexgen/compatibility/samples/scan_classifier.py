"""Can a classifier tell from which scan a draw is? Folds and shuffles take whole units: it must not know a chain."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import Tensor

from flexgen import rng
from flexgen.checks import whole_number
from flexgen.compatibility.samples.arguments import DrawsOfScans, check_generator
from flexgen.compatibility.samples.scan_tests import PairOfScans, ScanTest, concluded, prepared, share_as_large
from flexgen.compatibility.samples.units import Unit, Units
from flexgen.errors import FlexgenError
from flexgen.metrics import TwoSampleResult
from flexgen.rng import Randomness
from flexgen.space import Space

__all__ = ["classifier_scan_test"]

_MAX_CATEGORIES = 255  # of a column that trees take as categories


def classifier_scan_test(
    draws: DrawsOfScans,
    *,
    generator: Randomness | int,
    unit: Unit = "auto",
    space: Space | None = None,
    num_folds: int = 4,
    num_permutations: int = 999,
    max_draws: int = 20_000,
    significance: float = 0.05,
) -> ScanTest:
    """Gradient-boosted trees asked which of two scans a draw is from (Lopez-Paz & Oquab 2017), chains kept whole.

    `flexgen.metrics.classifier_two_sample_test` needs independent rows: with chains in it, trees would learn to know a
    chain by its neighbouring draws. Here a fold holds whole units, and each fold but the first is scored by trees that
    learned from the folds before it. The p-value shuffles whole units of the scored folds between the two scans, the
    trees being fixed. (Cross-validation, where every fold also teaches the others, makes the folds' areas depend on
    each other: with it this test refuted twice as often as it should.) The effect is the area under the ROC curve, 1/2
    where the laws are equal; an area A means a total variation of at least 1 - sqrt(2 (1 - A)) between the laws.

    It sees differences of many sites at once that distances drown in noise, and costs more than `energy_scan_test`,
    whose arguments it shares. Whether the chains had converged it does not test.

    Args:
        num_folds: each needs two units of every scan or more. With 2, half of the units teach and half are scored,
            and the p-value is exact where scans mix alike.
        max_draws: of all scans, evenly spaced in each unit.

    Raises:
        DataError, FlexgenError: as `energy_scan_test`; too few units for the folds.
    """
    units = prepared(draws, unit, space, num_permutations, max_draws, significance)
    generator = check_generator(generator)
    names, num_units = units.names, len(units.draws[units.names[0]])
    whole_number("num_folds", num_folds, 2)
    if num_units < 2 * num_folds:
        raise FlexgenError("num_folds", f"is {num_folds}, of {num_units} units", f"Pass {num_units // 2} or fewer.")
    source = rng.stream(rng.seed_from(generator), "classifier")
    pairs = []
    for first, second in itertools.combinations(names, 2):
        result, error = _compare(units, first, second, space, num_folds, num_permutations, source)
        pairs.append(PairOfScans(first, second, result.auc, error, result.p_value))
    effect_name = "area under the ROC curve, 1/2 where laws are equal"
    return concluded("classifier", effect_name, pairs, units, None, significance)


def _compare(
    units: Units,
    first: str,
    second: str,
    space: Space | None,
    num_folds: int,
    num_permutations: int,
    source: torch.Generator,
) -> tuple[TwoSampleResult, float]:
    """The area and its p-value, and the area's error (not under equal laws, but as it is)."""
    draws = torch.cat([units.draws[first], units.draws[second]])  # [2 U, L, N]
    half = len(draws) // 2
    label = torch.arange(2 * half) >= half
    fold = torch.cat([rng.permutation(1, half, generator=source)[0] % num_folds for _ in range(2)])
    codes, categorical = _columns(draws, space)
    seed = int(rng.integers(1 << 31, (1,), generator=source))
    areas, shuffled, variances = [], [], []
    for k in range(1, num_folds):
        train, test = (fold < k).nonzero()[:, 0], (fold == k).nonzero()[:, 0]
        trees = HistGradientBoostingClassifier(
            categorical_features=categorical, max_iter=100, early_stopping=False, random_state=seed
        )
        x, y = codes[train].flatten(0, 1).numpy(), label[train].repeat_interleave(draws.shape[1]).numpy()
        trees.fit(x, y)
        score = torch.from_numpy(trees.predict_proba(codes[test].flatten(0, 1).numpy())[:, 1])
        wins = _wins(score.view(len(test), -1))
        truth = label[test]
        orders = rng.permutation(num_permutations, len(test), generator=source)
        area, variance = _area(wins, truth)
        areas.append(area)
        variances.append(variance)
        shuffled.append(_areas(wins, truth[orders]))
    auc = torch.stack(areas).mean()
    null = torch.stack(shuffled).mean(0)
    p = share_as_large(auc[None], null)
    error = float(torch.stack(variances).sum().sqrt()) / (num_folds - 1)
    return TwoSampleResult(float(auc), float(null.std()), p, (half, half)), error


def _columns(draws: Tensor, space: Space | None) -> tuple[Tensor, list[bool]]:
    """Draws as the trees take them, float64, and which columns are categories."""
    kinds = [site.kind for site in space.sites] if space is not None else [None] * draws.shape[2]
    columns, categorical = [], []
    for site, kind in enumerate(kinds):
        column = draws[..., site].to(torch.float64)
        is_category = kind == "categorical" or (kind is None and not draws.is_floating_point())
        values, codes = torch.unique(column, return_inverse=True)
        categorical.append(bool(is_category and len(values) <= _MAX_CATEGORIES))
        columns.append(codes.to(torch.float64) if categorical[-1] else column)
    return torch.stack(columns, -1), categorical


def _wins(score: Tensor) -> Tensor:
    """How often a draw of unit u scores above one of unit v, ties counted half: ``[U, U]`` from ``[U, L]``."""
    num_units, length = score.shape
    flat = score.flatten().numpy()
    out = np.zeros((num_units, num_units))
    for v in range(num_units):
        ordered = np.sort(score[v].numpy())
        below = np.searchsorted(ordered, flat, "left") + np.searchsorted(ordered, flat, "right")
        out[:, v] = below.reshape(num_units, length).mean(1) / (2 * length)
    return torch.from_numpy(out)


def _areas(wins: Tensor, labels: Tensor) -> Tensor:
    """The area for each labelling, ``[P]`` from bool ``[P, U]``."""
    second = labels.to(torch.float64)
    first = 1 - second
    return ((second @ wins) * first).sum(1) / (second.sum(1) * first.sum(1))


def _area(wins: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """The area and its variance by the spread of the units' own areas (DeLong, clustered: Obuchowski 1997)."""
    between = wins[label][:, ~label]
    rows, columns = between.mean(1), between.mean(0)
    return between.mean(), rows.var() / len(rows) + columns.var() / len(columns)
