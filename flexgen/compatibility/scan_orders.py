"""A scan as orders of blocks with weights, as `stationary` and `stationary_gaussian` read it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flexgen.checks import kind_of
from flexgen.compatibility.family import is_number
from flexgen.errors import FlexgenError
from flexgen.exact.kernels import as_block

__all__ = ["Order", "weighted_orders"]

Order = tuple[tuple[int, ...], ...]


def weighted_orders(scan: Any, random: Sequence[tuple[int, ...]], num_sites: int) -> list[tuple[float, Order]]:
    """The orders of positive weight.

    Args:
        scan: ``"random"``, an order of sites and blocks, or a mapping of orders to probabilities.
        random: the blocks that a random scan chooses among.

    Raises:
        FlexgenError: whatever else `scan` may be.
    """
    if isinstance(scan, str):
        if scan != "random":
            raise FlexgenError("scan", f"is {scan!r}", "Say 'random', an order such as (0, 1, 2), or a mixture.")
        return [(1 / len(random), (block,)) for block in random]
    pairs = list(scan.items()) if isinstance(scan, Mapping) else [(scan, 1.0)]
    weights = [weight for _, weight in pairs]
    if not all(is_number(weight) and 0 <= weight < math.inf for weight in weights) or abs(sum(weights) - 1) > 1e-9:
        raise FlexgenError("scan", f"has weights {weights}", "Give every order a probability; they sum to 1.")
    orders = [(float(weight), _order(order, num_sites)) for order, weight in pairs]
    return [(weight, order) for weight, order in orders if weight]


def _order(order: Any, num_sites: int) -> Order:
    if isinstance(order, str) or not isinstance(order, Iterable):
        raise FlexgenError("scan", f"has the order {kind_of(order)}", "Write an order as a tuple of sites: (0, 1, 2).")
    blocks = tuple(_block(block, num_sites) for block in order)
    if not blocks:
        raise FlexgenError("scan", "holds an empty order", "Name the sites that a sweep updates, in order.")
    return blocks


def _block(block: Any, num_sites: int) -> tuple[int, ...]:
    several = isinstance(block, Iterable) and not isinstance(block, str)
    sites = tuple(block) if several else (block,)
    if any(isinstance(site, bool) or not hasattr(site, "__index__") for site in sites):
        raise FlexgenError("scan", f"names the site {block!r}", f"Number the sites, 0 to {num_sites - 1}.")
    numbers = [site.__index__() for site in sites]
    return as_block(numbers if several else numbers[0], num_sites)
