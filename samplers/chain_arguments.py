"""What a run of chains may be given: each complaint names the argument, its value and the fix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flexgen.checks import kind_of, whole_number, whole_numbers
from flexgen.errors import FlexgenError, SpaceError
from flexgen.query import Query
from flexgen.space import Space
from samplers.observers import Observer
from samplers.results import ChainState

__all__ = ["agree_on_chains", "check_clamped", "check_start", "refuse_beside_state", "refuse_missing", "require_run"]


def require_run(
    *, draws: int, warmup: int, thin: int, chain_batch: int | None, observers: Sequence[Observer], state: Any
) -> None:
    """Of every run, whether it starts or goes on."""
    whole_number("draws", draws, 0)
    whole_number("warmup", warmup, 0)
    whole_number("thin", thin, 1)
    if chain_batch is not None:
        whole_number("chain_batch", chain_batch, 1)
    foreign = [observer for observer in observers if not isinstance(observer, Observer)]
    if foreign:
        raise FlexgenError("observers", f"hold {kind_of(foreign[0])}", "Pass a list of samplers.observers.")
    if state is not None and not isinstance(state, ChainState):
        raise FlexgenError("state", f"is {kind_of(state)}", "Pass the state of an earlier result: result.state.")


def refuse_beside_state(**given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            raise FlexgenError(name, "is given beside state, which already holds it", "Leave it out to continue.")


def check_start(*, chains: Any, x: Any, clamped: Any, chain_ids: Any, space: Space) -> None:
    """Types, before the values are looked at."""
    if chains is not None:
        whole_number("chains", chains, 0)
    if x is not None and not isinstance(x, Tensor):
        fix = "Pass a tensor [B, N]; of a frame, model.schema.encode(df); of an array, torch.from_numpy(x)."
        raise FlexgenError("x", f"is {kind_of(x)}", fix)
    if clamped is not None and not isinstance(clamped, Tensor | Query):
        names = [clamped] if isinstance(clamped, str) else clamped
        named = isinstance(names, Sequence) and len(names) > 0 and all(isinstance(name, str) for name in names)
        example = list(names) if named else [space.names[0]] if space.names else []
        raise FlexgenError(
            "clamped",
            f"is {kind_of(clamped)}",
            "Pass a tensor of booleans, one a site: "
            f"torch.tensor([name in {example} for name in conditional.space.names]).",
        )
    if chain_ids is not None and not hasattr(chain_ids, "__len__"):
        raise FlexgenError("chain_ids", f"is {kind_of(chain_ids)}", "Pass a whole number for every chain.")
    if chain_ids is not None and not isinstance(chain_ids, torch.Tensor | range):
        whole_numbers("chain_ids", chain_ids, "Pass a whole number for every chain.", least=-(1 << 63))


def agree_on_chains(
    chains: int | None, x: Tensor | None, chain_ids: Sequence[int] | Tensor | None, clamped: Tensor | None
) -> int:
    """How many chains the arguments are for."""
    counts = {
        "chains": chains,
        "x": None if x is None else len(x),
        "chain_ids": None if chain_ids is None else len(chain_ids),
        "clamped": len(clamped) if clamped is not None and clamped.ndim == 2 else None,
    }
    named = {name: count for name, count in counts.items() if count is not None}
    if not named:
        raise FlexgenError("chains", "is not given", "Say how many chains to run, or pass their states as x.")
    (first, count), *others = named.items()
    for name, other in others:
        if other != count:
            raise FlexgenError(name, f"is for {other} chain(s), but {first} for {count}", "Let them agree.")
    if count < 1:
        raise FlexgenError(first, f"is for {count} chains", "Run at least one.")
    return count


def check_clamped(clamped: Tensor, num_chains: int, num_sites: int) -> None:
    if clamped.dtype != torch.bool or tuple(clamped.shape) not in ((num_sites,), (num_chains, num_sites)):
        raise FlexgenError(
            "clamped",
            f"has shape {tuple(clamped.shape)} and type {clamped.dtype}",
            f"Pass booleans [N] = [{num_sites}] or [B, N] = [{num_chains}, {num_sites}], True where a site "
            "keeps its value.",
        )


def refuse_missing(x: Tensor, where: Tensor | None, space: Space) -> None:
    if not x.is_floating_point():
        return
    if x.ndim != 2 + len(space.site_shape) or x.shape[1] != space.num_sites:
        return  # Space.validate says what shape is meant
    missing = torch.isnan(x).reshape(*x.shape[:2], -1).any(-1)  # [B, N]
    if where is not None:
        missing &= where
    if missing.any():
        row, site = (int(i) for i in missing.nonzero()[0])
        raise SpaceError(
            "x",
            f"holds NaN at chain {row}, site {space.names[site]!r}",
            "Every site is conditioned on in turn and needs a value: pass clamped=~x.isnan() and initialise=True to "
            "draw the missing ones.",
        )
