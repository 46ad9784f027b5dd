"""A token network over many rows: identical rows once, batches within a budget of tokens, and what it cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flexgen.errors import FlexgenError
from flexgen.networks.modes import evaluating

__all__ = ["ForwardCount", "logits_at"]

_LOGITS_AT_ONCE = 1 << 27  # half a gigabyte of float32, whatever the vocabulary


@dataclass
class ForwardCount:
    """What has passed through a network.

    Attributes:
        rows: sequences, each a forward pass; identical sequences of one call count once.
        batches: calls of the network.
        tokens: of all rows, padding included.
    """

    rows: int = 0
    batches: int = 0
    tokens: int = 0

    def reset(self) -> None:
        self.rows = self.batches = self.tokens = 0


def logits_at(
    network: nn.Module,
    ids: Tensor,
    lengths: Tensor,
    at: tuple[Tensor, Tensor],
    columns: Tensor,
    *,
    vocabulary_size: int,
    max_tokens: int,
    count: ForwardCount,
    hidden: bool = False,
) -> Tensor:
    """The network's logits at some places of some rows, float32 or finer ``[P, K]``, on the device of `ids`.

    Args:
        network: ``(input_ids, attention_mask)`` to an output with ``.logits``, ``[b, L, V]``; run in evaluation mode.
        ids: tokens, int64 ``[R, L]``; what stands at a row's `length` and behind is padding.
        lengths: int64 ``[R]``.
        at: row and place of each answer, int64 ``[P]`` both.
        columns: tokens whose logits are returned, int64 ``[K]``.
        vocabulary_size: V.
        max_tokens: rows times length of a batch; at least one row is taken.
        count: is added to.
        hidden: the states of the last hidden layer instead, ``[P, D]``; `columns` are not read.
    """
    rows, places = at
    first, copy_of = _distinct(torch.cat([lengths[:, None], ids], 1))
    ascending = lengths[first].argsort(stable=True)  # rows of like lengths together, so that a batch pads little
    lengths, ids = lengths[first][ascending], ids[first][ascending]
    copy_of = ascending.argsort()[copy_of]
    source = copy_of[rows]  # [P], the distinct row of each answer
    sorted_source, by_source = source.sort(stable=True)
    device = next(network.parameters()).device
    columns = columns.to(device)
    budget = min(max_tokens, _LOGITS_AT_ONCE // vocabulary_size)
    extra = {"output_hidden_states": True} if hidden else {}
    width = int(getattr(getattr(network, "config", None), "hidden_size", 0)) if hidden else len(columns)
    parts = [ids.new_zeros(0, width, dtype=torch.float32)]
    with evaluating(network):
        for batch in _batches(lengths.tolist(), budget):
            length = int(lengths[batch.stop - 1])
            first, last = torch.searchsorted(sorted_source, sorted_source.new_tensor([batch.start, batch.stop]))
            answers = by_source[first:last]
            attended = torch.arange(length, device=ids.device) < lengths[batch, None]  # [b, L]
            output = network(
                input_ids=ids[batch, :length].to(device), attention_mask=attended.long().to(device), **extra
            )
            if getattr(output, "logits", None) is None:
                raise FlexgenError(
                    "model",
                    f"answers with {type(output).__name__}, which has no logits",
                    "Pass a masked language model, as AutoModelForMaskedLM loads it.",
                )
            row, place = (source[answers] - batch.start).to(device), places[answers].to(device)
            if hidden:
                chosen = output.hidden_states[-1][row, place]  # [p, D]
            else:
                chosen = output.logits[row[:, None], place[:, None], columns]  # [p, K]
            parts.append(_at_least_float32(chosen).to(ids.device))
            count.rows += len(attended)
            count.batches += 1
            count.tokens += attended.numel()
    return torch.cat(parts)[by_source.argsort()]


def _distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of rows ``[R, W]``: where each distinct one stands first, int64 ``[U]``; which of these every row is, ``[R]``."""
    # Sorting one hash a row is ten times faster than sorting rows; a collision, if ever, is noticed.
    odd = torch.randint(1 << 61, rows.shape[1:], generator=torch.Generator().manual_seed(0)) * 2 + 1
    hashes, copy_of = torch.unique((rows * odd.to(rows.device)).sum(-1), return_inverse=True)
    places = torch.arange(len(rows), device=rows.device)
    first = hashes.new_full(hashes.shape, len(rows)).scatter_reduce_(0, copy_of, places, "amin")
    if torch.equal(rows[first][copy_of], rows):
        return first, copy_of
    distinct, copy_of = torch.unique(rows, dim=0, return_inverse=True)
    return places.new_full((len(distinct),), len(rows)).scatter_reduce_(0, copy_of, places, "amin"), copy_of


def _batches(lengths: list[int], budget: int) -> Iterator[slice]:
    """Consecutive rows of ascending lengths, as many at once as fit the budget when padded to the longest."""
    start = 0
    for row, length in enumerate(lengths):
        if row > start and (row + 1 - start) * length > budget:
            yield slice(start, row)
            start = row
    if start < len(lengths):
        yield slice(start, len(lengths))


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
