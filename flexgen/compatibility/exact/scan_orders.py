"""A scan as orders of blocks with weights, as `stationary` and `stationary_gaussian` read it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from flexgen.checks import is_number, kind_of, renamed
from flexgen.errors import FlexgenError
from flexgen.exact.kernels import as_block

__all__ = ["Order", "Scan", "weighted_orders"]

Order: TypeAlias = tuple[tuple[int, ...], ...]
Block: TypeAlias = int | str | Sequence[int] | Sequence[str]  # sites by number or, of a family with labels, by name
Scan: TypeAlias = Literal["random"] | Iterable[Block] | Mapping[tuple[Block, ...], float]


def weighted_orders(
    scan: Any, random: Sequence[tuple[int, ...]], num_sites: int, names: Sequence[str] = ()
) -> list[tuple[float, Order]]:
    """The orders of positive weight.

    Args:
        scan: ``"random"``, an order of sites and blocks, or a mapping of orders to probabilities; or a sampler's scan,
            one's own too, that says its ``orders(num_sites)``.
        random: the blocks that a random scan chooses among.
        names: what users call the sites, which orders may use in place of their numbers.

    Raises:
        FlexgenError: whatever else `scan` may be.
    """
    if hasattr(scan, "orders"):  # a sampler's; samplers lie above this floor
        scan = scan.orders(num_sites)
    if isinstance(scan, str):
        if scan != "random":
            raise FlexgenError("scan", f"is {scan!r}", "Say 'random', an order such as (0, 1, 2), or a mixture.")
        return [(1 / len(random), (block,)) for block in random]
    pairs = list(scan.items()) if isinstance(scan, Mapping) else [(scan, 1.0)]
    weights = [weight for _, weight in pairs]
    if not all(is_number(weight) and 0 <= weight < math.inf for weight in weights) or abs(sum(weights) - 1) > 1e-9:
        raise FlexgenError("scan", f"has weights {weights}", "Give every order a probability; they sum to 1.")
    numbers = {name: site for site, name in enumerate(names)}
    orders = [(float(weight), _order(order, num_sites, numbers)) for order, weight in pairs]
    return [(weight, order) for weight, order in orders if weight]


def _order(order: Any, num_sites: int, numbers: Mapping[str, int]) -> Order:
    if isinstance(order, str) or not isinstance(order, Iterable):
        raise FlexgenError("scan", f"has the order {kind_of(order)}", "Write an order as a tuple of sites: (0, 1, 2).")
    blocks = tuple(_block(block, num_sites, numbers) for block in order)
    if not blocks:
        raise FlexgenError("scan", "holds an empty order", "Name the sites that a sweep updates, in order.")
    return blocks


def _block(block: Any, num_sites: int, numbers: Mapping[str, int]) -> tuple[int, ...]:
    several = isinstance(block, Iterable) and not isinstance(block, str)
    sites: list[Any] = [
        numbers.get(site, site) if isinstance(site, str) else site for site in (block if several else (block,))
    ]
    if any(isinstance(site, bool) or not hasattr(site, "__index__") for site in sites):
        fix = f"Number the sites, 0 to {num_sites - 1}"
        if numbers:
            fix += f", or use their names: {', '.join(list(numbers)[:12])}."
        elif any(isinstance(site, str) for site in sites):
            fix += "; names come with labels: ConditionalFamily.of_tables(tables, labels=labels)."
        else:
            fix += "."
        raise FlexgenError("scan", f"names the site {block!r}", fix)
    indices = [site.__index__() for site in sites]
    with renamed(block="scan"):
        return as_block(indices if several else indices[0], num_sites)
