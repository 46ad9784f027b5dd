"""What a diagnosis looks at for a given number of forward passes: a value, made before anything is evaluated."""

from __future__ import annotations

import datetime
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flexgen import rng
from flexgen.checks import kind_of
from flexgen.compatibility.networks.rectangles import all_pairs
from flexgen.compatibility.networks.values import Values
from flexgen.errors import FlexgenError
from flexgen.space import Space

__all__ = ["DEFAULT_FORWARDS", "SHARES", "Plan", "budget_of", "make_plan"]

DEFAULT_FORWARDS = 20_000

SHARES = {"rectangles": 0.45, "circulations": 0.2, "order gaps": 0.2, "mixed derivatives": 0.05, "exact blocks": 0.1}
_FEWEST_ROWS, _ENOUGH_ROWS, _MOST_ROWS = 10, 32, 1024  # clusters of an interval
_MOST_CIRCULATION_ROWS = 256
_MOST_TARGETS = 16  # of an order gap
_MOST_STATES = 64  # of an exact block
_PROBED_ROWS = 16  # that `derivative_gaps` evaluates twice
_UNITS = {"s": 1.0, "sec": 1.0, "second": 1.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0}


@dataclass(frozen=True, eq=False)
class Plan:
    """Data rows, pairs, targets and blocks that will be looked at.

    Args:
        rectangle_rows: int64 ``[R]``, numbers of data rows.
        pairs: int64 ``[P, 2]``, looked at in each of these rows; or each row's own, R of such.
        circulation_rows, circulation_pairs: int64 ``[R']``, ``[R', P', 2]``.
        order_rows: int64 ``[R'']``.
        order_targets: bool ``[R'', N]``; the other sites are observed.
        block_rows, blocks: int64 ``[B]``, ``[B, k]``.
        derivative_rows, real_sites: int64 ``[R*]``, ``[S*]``.
        num_pairs: how many pairs there are in all.
        omitted: diagnostics that there is something to ask about, but not within the budget.
        least: forward passes without which none can be made.
    """

    rectangle_rows: Tensor
    pairs: Tensor | tuple[Tensor, ...]
    circulation_rows: Tensor
    circulation_pairs: Tensor
    order_rows: Tensor
    order_targets: Tensor
    block_rows: Tensor
    blocks: Tensor
    derivative_rows: Tensor
    real_sites: Tensor
    num_pairs: int
    omitted: tuple[str, ...]
    least: int


def budget_of(budget: Any) -> tuple[int | None, float | None]:
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
    if isinstance(budget, bool) or not hasattr(budget, "__index__") or operator.index(budget) < 1:
        raise FlexgenError("budget", f"is {kind_of(budget)}", fix)
    return operator.index(budget), None


def make_plan(
    space: Space,
    num_categories: Sequence[int],
    present: Tensor,
    sites: Tensor,
    *,
    forwards: int,
    values: Values,
    per_value: bool,
    seed: int,
) -> Plan:
    """Divides `forwards` among the diagnostics; what they take is known beforehand, and never more.

    Args:
        space: of the model.
        num_categories: K of every site, codes for absent sites left out.
        present: bool ``[num_data, N]``.
        sites: int64, those that are examined, at least two.
        forwards: rows that may pass the network.
        values: how values of sites are chosen.
        per_value: every value is a forward pass of its own (no marginals).
        seed: of all choices.
    """
    widths = values.widths(num_categories).double()
    readings = widths if per_value else torch.ones_like(widths)
    pairs = sites[all_pairs(len(sites))]
    source = rng.stream(seed, "plan")
    order = torch.randperm(len(present), generator=source)
    order = order[present[order][:, sites].sum(-1) >= 2]  # in fewer there is nothing to compare
    real = sites[torch.tensor([space.sites[s].kind == "real" for s in sites.tolist()])]
    few = [s for s in sites.tolist() if 0 < num_categories[s] <= values.max_categories]
    possible = {"mixed derivatives": len(real) > 1, "exact blocks": len(few) > 1}
    parts = {name: part for name, part in SHARES.items() if possible.get(name, True)}
    share = {name: part * forwards / sum(parts.values()) for name, part in parts.items()}

    each = _rectangle_costs(pairs, widths, readings)
    cheapest = float((each + readings[pairs].sum(1)).min())
    chosen, num_rows = _rectangles(pairs, each, readings, share["rectangles"], len(order), source)
    of_row = _circulations(pairs, widths, readings, share["circulations"], len(order), source)
    target = _targets(sites, present.shape[1], share["order gaps"], len(order), source)
    block_rows, blocks = _blocks(few, num_categories, present, order, share.get("exact blocks", 0.0), readings, source)
    real, num_derivative_rows = _derivatives(real, share.get("mixed derivatives", 0.0), len(order), source)
    planned = {
        "rectangles": num_rows,
        "circulations": len(of_row),
        "order gaps": len(target),
        "mixed derivatives": num_derivative_rows,
        "exact blocks": len(blocks),
    }
    return Plan(
        order[:num_rows],
        chosen,
        order[: len(of_row)],
        of_row,
        order[: len(target)],
        target,
        block_rows,
        blocks,
        order[:num_derivative_rows],
        real,
        len(pairs),
        tuple(name for name in share if not planned[name]) if len(order) else (),
        math.ceil(cheapest * forwards / share["rectangles"]),
    )


def _rectangle_costs(pairs: Tensor, widths: Tensor, readings: Tensor) -> Tensor:
    """Rows a pair takes in a context, those of the data's own values aside, ``[P]``."""
    return (widths[pairs].flip(1) - 1).mul(readings[pairs]).sum(1)


def _rectangles(
    pairs: Tensor, each: Tensor, readings: Tensor, share: float, most_rows: int, source: torch.Generator
) -> tuple[Tensor | tuple[Tensor, ...], int]:
    """All pairs if 10 rows of them can be had, otherwise random pairs of each row's own, in 32 rows or fewer.

    Were they the same in all rows, intervals clustered by row would not tell how pairs differ.
    """

    def cost(number: int, chosen: Tensor) -> float:
        return float(each[chosen[:number]].sum() + readings[torch.unique(pairs[chosen[:number]])].sum())

    everything, rows = torch.arange(len(pairs)), min(_ENOUGH_ROWS, most_rows)
    if float(each.min()) + 2 > share or not most_rows:
        return pairs[:0], 0
    whole = cost(len(pairs), everything)
    if min(_FEWEST_ROWS, most_rows) * whole <= share:
        return pairs, min(_MOST_ROWS, most_rows, int(share / whole))
    orders = [torch.randperm(len(pairs), generator=source) for _ in range(rows)]
    number, spent = _most_of(lambda n: cost(n, orders[0]), share / rows, len(pairs)), 0.0
    of_row: list[Tensor] = []
    for order in orders:
        spent += cost(max(number, 1), order)
        if spent > share:
            break
        of_row.append(pairs[order[: max(number, 1)]])
    if len(of_row) >= min(2, most_rows):
        return tuple(of_row), len(of_row)
    alone = each + readings[pairs].sum(1)
    best = int(alone.argmin())
    return pairs[best : best + 1], min(most_rows, int(share / float(alone[best])))


def _most_of(cost: Callable[[int], float], share: float, most: int) -> int:
    """The largest number whose cost, which grows with it, is within a share."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= share else (low, middle - 1)
    return low


def _circulations(
    pairs: Tensor, widths: Tensor, readings: Tensor, share: float, most_rows: int, source: torch.Generator
) -> Tensor:
    """Pairs of their own in every row, ``[R', P', 2]``."""
    head = torch.where((readings[pairs] > 1).any(1), readings[pairs].sum(1), 1.0)
    each = head + widths[pairs].mul(readings[pairs].flip(1)).sum(1)
    cells = int(share / float(each.mean()))
    num_rows = min(_MOST_CIRCULATION_ROWS, most_rows, cells)
    if num_rows < 1:
        return pairs[:0][None, :0]
    chosen = torch.randint(len(pairs), (num_rows, cells // num_rows), generator=source)
    return pairs[chosen[each[chosen].sum(1).cumsum(0) <= share]]


def _targets(sites: Tensor, num_sites: int, share: float, most_rows: int, source: torch.Generator) -> Tensor:
    """Targets of order gaps, at most 16 a row, bool ``[R'', N]``; two orders of each."""
    number = min(_MOST_TARGETS, len(sites), int(share / 2))
    num_rows = min(_MOST_ROWS, most_rows, int(share / (2 * max(number, 1)))) if number > 1 else 0
    target = torch.zeros(num_rows, num_sites, dtype=torch.bool)
    target[:, sites] = torch.rand(num_rows, len(sites), generator=source).argsort(-1) < number
    return target


def _derivatives(real: Tensor, share: float, most_rows: int, source: torch.Generator) -> tuple[Tensor, int]:
    """Real sites, all of them if they can be had, and in how many rows; the first 16 are evaluated twice."""
    number = min(len(real), int(share / 4))  # two rows, twice
    if number < 2 or not most_rows:
        return real[:0], 0
    real = real[torch.randperm(len(real), generator=source)[:number].sort().values]
    contexts = int(share / number)
    return real, min(most_rows, max(contexts // 2, contexts - _PROBED_ROWS) if contexts > 1 else 0)


def _blocks(
    few: list[int],
    num_categories: Sequence[int],
    present: Tensor,
    order: Tensor,
    share: float,
    readings: Tensor,
    source: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Random blocks of three (or two) categorical sites with few states, each in the context of a row that has them."""
    counts = torch.tensor(num_categories, dtype=torch.float64)
    usable = torch.tensor(few, dtype=torch.int64)
    for size in (3, 2):
        if size > len(few) or not len(order):
            continue
        candidates = usable[torch.rand(256, len(few), generator=source).argsort(-1)[:, :size]].sort(-1).values
        candidates = candidates[counts[candidates].prod(-1) <= _MOST_STATES]
        rows = order[torch.arange(len(candidates)) % len(order)]
        whole = present[rows].gather(1, candidates).all(1)
        rows, candidates = rows[whole], candidates[whole]
        states = counts[candidates].prod(-1, keepdim=True)
        cost = (states / counts[candidates] * readings[candidates]).sum(-1)  # rows a block
        number = min(int((cost.cumsum(0) <= share).sum()), len(order))
        if number:
            return rows[:number], candidates[:number]
    return order[:0], torch.zeros(0, 0, dtype=torch.int64)
