"""What a diagnosis looks at for a given number of forward passes: a value, made before anything is evaluated."""

from __future__ import annotations

import datetime
import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from flexgen import rng
from flexgen.compatibility.network_rectangles import all_pairs
from flexgen.compatibility.values import Values
from flexgen.errors import FlexgenError
from flexgen.space import Space

__all__ = ["DEFAULT_FORWARDS", "Plan", "budget_of", "make_plan"]

DEFAULT_FORWARDS = 20_000

_SHARES = {"rectangles": 0.45, "circulation": 0.2, "orders": 0.2, "blocks": 0.1, "derivatives": 0.05}
_ENOUGH_ROWS, _MOST_ROWS = 32, 1024  # clusters of an interval
_MOST_TARGETS = 16  # of an order gap
_MOST_STATES = 27  # of an exact block
_UNITS = {"s": 1.0, "sec": 1.0, "second": 1.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0}


@dataclass(frozen=True, eq=False)
class Plan:
    """Data rows, pairs, targets and blocks that will be looked at.

    Args:
        rectangle_rows: int64 ``[R]``, numbers of data rows.
        pairs: int64 ``[P, 2]``, looked at in each of these rows.
        circulation_rows, circulation_pairs: int64 ``[R']``, ``[R', P', 2]``.
        order_rows: int64 ``[R'']``.
        order_targets: bool ``[R'', N]``; the other sites are observed.
        block_rows, blocks: int64 ``[B]``, ``[B, k]``.
        derivative_rows, real_sites: int64 ``[R*]``, ``[S*]``.
        num_pairs: how many pairs there are in all.
    """

    rectangle_rows: Tensor
    pairs: Tensor
    circulation_rows: Tensor
    circulation_pairs: Tensor
    order_rows: Tensor
    order_targets: Tensor
    block_rows: Tensor
    blocks: Tensor
    derivative_rows: Tensor
    real_sites: Tensor
    num_pairs: int


def budget_of(budget: int | str | datetime.timedelta) -> tuple[int | None, float | None]:
    """(forwards, seconds), one of them None.

    >>> budget_of(5000), budget_of("30 s"), budget_of("2 min")
    ((5000, None), (None, 30.0), (None, 120.0))
    """
    fix = "Pass a whole number of forward passes, such as 20_000, or a time, such as '30 s' or '2 min'."
    if isinstance(budget, datetime.timedelta):
        budget = f"{budget.total_seconds()} s"
    if isinstance(budget, str):
        match = re.fullmatch(r"\s*([\d_.]+)\s*([a-z]+?)s?\s*", budget.lower())
        unit = match[2] if match else ""
        if not match or (unit not in _UNITS and unit not in ("forward", "row")):
            raise FlexgenError("budget", f"is {budget!r}", fix)
        try:
            number = float(match[1])
        except ValueError:
            raise FlexgenError("budget", f"is {budget!r}", fix) from None
        if number <= 0:
            raise FlexgenError("budget", f"is {budget!r}", fix)
        return (None, number * _UNITS[unit]) if unit in _UNITS else (max(int(number), 1), None)
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise FlexgenError("budget", f"is {budget!r}", fix)
    return budget, None


def make_plan(
    space: Space, present: Tensor, sites: Tensor, *, forwards: int, values: Values, per_value: bool, seed: int
) -> Plan:
    """Divides `forwards` among the diagnostics.

    Args:
        space: of the model.
        present: bool ``[num_data, N]``.
        sites: int64, those that are examined, at least two.
        forwards: rows that may pass the network; the least that makes sense is spent if they are fewer.
        values: how values of sites are chosen.
        per_value: every value is a forward pass of its own (no marginals).
        seed: of all choices.
    """
    widths = values.widths(space.num_categories).double()
    pairs = sites[all_pairs(len(sites))]
    source = rng.stream(seed, "plan")
    order = torch.randperm(len(present), generator=source)
    shuffled = pairs[torch.randperm(len(pairs), generator=source)]
    share = {name: part * forwards for name, part in _SHARES.items()}
    readings = widths if per_value else torch.ones_like(widths)

    # Rectangles: all pairs if 32 rows of them can be had, otherwise random pairs in 32 rows.
    cost = (widths[pairs] - 1).sum(1) * readings[pairs].mean(1)  # [pairs], the shared rows aside
    base = float(readings[sites].sum())
    wanted_rows = min(_ENOUGH_ROWS, len(present))
    num_pairs = len(pairs)
    if wanted_rows * (base + float(cost.sum())) > share["rectangles"]:
        # A random pair brings two sites until all are there: count them as new.
        each = float(cost.mean()) + 2.0 * float(readings[sites].mean())
        num_pairs = max(1, min(len(pairs), int(share["rectangles"] / wanted_rows / each)))
    chosen = pairs if num_pairs == len(pairs) else shuffled[:num_pairs]
    a_row = min(base, 2.0 * num_pairs * float(readings[sites].mean())) + num_pairs * float(cost.mean())
    num_rows = _within(share["rectangles"] / a_row, 2, min(_MOST_ROWS, len(present)))

    # Circulation: pairs of their own in every row.
    mean_cost = float((1.0 + widths[pairs].sum(1)).mean() * readings[sites].mean())
    cells = max(2, int(share["circulation"] / mean_cost))
    rows_c = _within(cells, 2, min(256, len(present)))
    pairs_a_row = max(1, cells // rows_c)
    of_row = pairs[torch.randint(len(pairs), (rows_c, pairs_a_row), generator=source)]  # [R', P', 2]

    # Order gaps: two orders of at most 16 targets a row.
    targets = min(_MOST_TARGETS, len(sites))
    rows_o = _within(share["orders"] / (2 * targets), 2, min(_MOST_ROWS, len(present)))
    ranks = torch.rand(rows_o, len(sites), generator=source).argsort(-1)
    target = torch.zeros(rows_o, present.shape[1], dtype=torch.bool)
    target[:, sites] = ranks < targets

    real = sites[torch.tensor([space.sites[s].kind == "real" for s in sites.tolist()])]
    block_rows, blocks = _blocks(space, present, sites, order, share["blocks"], values, source)
    return Plan(
        order[:num_rows],
        chosen,
        order[:rows_c],
        of_row,
        order[:rows_o],
        target,
        block_rows,
        blocks,
        order[: _within(share["derivatives"] / max(len(real), 1), 2, len(present))] if len(real) > 1 else order[:0],
        real,
        len(pairs),
    )


def _blocks(
    space: Space, present: Tensor, sites: Tensor, order: Tensor, share: float, values: Values, source: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random blocks of three (or two) categorical sites with few states, each in the context of a data row."""
    few = torch.tensor([0 < space.num_categories[s] <= values.max_categories for s in sites.tolist()], dtype=torch.bool)
    usable = sites[few]
    size = min(3, len(usable))
    nothing = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0, dtype=torch.int64)
    if size < 2:
        return nothing
    counts = torch.tensor(space.num_categories, dtype=torch.float64)
    candidates = usable[torch.rand(256, len(usable), generator=source).argsort(-1)[:, :size]].sort(-1).values
    states = counts[candidates].prod(-1)
    if bool((states > _MOST_STATES).all()):
        size, candidates = 2, candidates[:, :2]
        states = counts[candidates].prod(-1)
    candidates, states = candidates[states <= 64], states[states <= 64]
    if len(candidates) == 0:
        return nothing
    cost = (states[:, None] / counts[candidates]).sum(-1)  # rows a block
    affordable = int((cost.cumsum(0) <= share).sum())
    number = min(max(affordable, 2), len(candidates), len(present))
    rows = order[torch.arange(number) % len(order)]
    complete = present[rows][:, sites].any(1)
    return rows[complete], candidates[:number][complete]


def _within(value: float, low: int, high: int) -> int:
    return max(min(low, high), min(high, math.floor(value)))
