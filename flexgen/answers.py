"""Which queries a conditional can answer, as a value that it declares.

A conditional that cannot answer every query sets the attribute ``answers``:

    self.answers = CompleteConditionals()

Samplers, objectives and `fg.diagnose` read it and refuse, before any work, what the conditional cannot answer. A
conditional without the attribute answers every query (`AnyQuery`). Declarations join: ``CompleteConditionals() |
Whole()`` allows what either allows.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flexgen.errors import FlexgenError, UnsupportedQueryError
from flexgen.query import Query

__all__ = ["Answers", "AnyQuery", "Blocks", "CompleteConditionals", "Prefixes", "Whole", "answers_of", "check_query"]


class Answers(ABC):
    """A set of queries. A query without a target is in each: there is nothing to answer."""

    @abstractmethod
    def allows(self, query: Query) -> Tensor:
        """Whether each row's query can be answered, bool ``[B]``; of one query for all rows, bool ``[]``."""

    def allows_all(self, query: Query) -> bool:
        """Whether `allows` is true of every row; remembered, since a scan asks the same queries in every sweep."""
        known: tuple[Answers, bool] | None = query.__dict__.get("_allowed")
        if known is None or known[0] is not self:
            known = (self, bool(self.allows(query).all()))
            object.__setattr__(query, "_allowed", known)
        return known[1]

    def factorizes(self, query: Query) -> bool:  # noqa: ARG002
        """Whether the targets of every row are independent given its observed sites, as far as is declared.

        Then the joint answer is the product of the marginals, and one evaluation gives it.
        """
        return False

    def __or__(self, other: Answers) -> Answers:
        return _Either(self, other)


@dataclass(frozen=True)
class AnyQuery(Answers):
    """Any target given any observed sites."""

    def allows(self, query: Query) -> Tensor:
        return torch.ones(query.target.shape[:-1], dtype=torch.bool, device=query.device)

    def __str__(self) -> str:
        return "any query"


@dataclass(frozen=True)
class CompleteConditionals(Answers):
    """One target given all other sites, p(x_i | rest)."""

    def allows(self, query: Query) -> Tensor:
        count = query.target.sum(-1)
        return (count == 0) | ((count == 1) & ~query.marginalised.any(-1))

    def __str__(self) -> str:
        return "the complete conditionals p(x_i | rest)"


@dataclass(frozen=True)
class Whole(Answers):
    """All sites given nothing, p(x)."""

    def allows(self, query: Query) -> Tensor:
        return ~query.target.any(-1) | query.target.all(-1)

    def __str__(self) -> str:
        return "all sites given nothing"


@dataclass(frozen=True)
class Blocks(Answers):
    """Sites of one block given all other blocks, as in a restricted Boltzmann machine or along a colouring.

    Args:
        blocks: the sites of every block, each site in one of them.
        independent: the sites of a block are independent given the other blocks. A block is then drawn in one
            evaluation, and sites of the target's own block need not be observed. Otherwise all sites but the targets
            must be.

    Raises:
        FlexgenError: a site in two blocks, or in none.
    """

    blocks: tuple[tuple[int, ...], ...]
    independent: bool = False
    _members: Tensor = field(init=False, repr=False, compare=False)  # bool [G, N]

    def __init__(self, blocks: Iterable[Iterable[int]], *, independent: bool = False) -> None:
        found = tuple(tuple(int(site) for site in block) for block in blocks)
        sites = sorted(site for block in found for site in block)
        if not sites or sites != list(range(len(sites))):
            twice = [a for a, b in itertools.pairwise(sites) if a == b]
            problem = f"hold site {twice[0]} twice" if twice else f"leave out sites below {max(sites, default=0)}"
            raise FlexgenError("blocks", problem, "Put every site, numbered from 0, in exactly one block.")
        members = torch.zeros(len(found), len(sites), dtype=torch.bool)
        for number, block in enumerate(found):
            members[number, list(block)] = True
        object.__setattr__(self, "blocks", found)
        object.__setattr__(self, "independent", independent)
        object.__setattr__(self, "_members", members)

    def allows(self, query: Query) -> Tensor:
        members = self._members.to(query.device)  # [G, N]
        touched = (query.target[..., None, :] & members).any(-1)  # [.., G]
        if self.independent:
            own = members[touched.long().argmax(-1)]  # [.., N], of the first block that is touched
            known = (query.observed | own).all(-1)
        else:
            known = ~query.marginalised.any(-1)
        count = touched.sum(-1)
        return (count == 0) | ((count == 1) & known)

    def factorizes(self, query: Query) -> bool:
        return self.independent and self.allows_all(query)

    def __str__(self) -> str:
        return f"sites of one of its {len(self.blocks)} blocks given the others"


@dataclass(frozen=True)
class Prefixes(Answers):
    """The next sites of an order given all sites before them, as an autoregressive model answers.

    Args:
        order: a permutation of the sites.
    """

    order: tuple[int, ...]

    def __init__(self, order: Iterable[int]) -> None:
        found = tuple(int(site) for site in order)
        if sorted(found) != list(range(len(found))):
            problem = f"is no permutation of the {len(found)} sites"
            raise FlexgenError("order", problem, f"Name each of 0 to {len(found) - 1} once.")
        object.__setattr__(self, "order", found)

    def allows(self, query: Query) -> Tensor:
        order = torch.tensor(self.order, device=query.device)
        before = query.observed[..., order]
        after = before | query.target[..., order]
        is_prefix = [(sites[..., :-1] | ~sites[..., 1:]).all(-1) for sites in (before, after)]
        return ~query.target.any(-1) | (is_prefix[0] & is_prefix[1])

    def __str__(self) -> str:
        return "the next sites of its order given all before them"


@dataclass(frozen=True)
class _Either(Answers):
    one: Answers
    other: Answers

    def allows(self, query: Query) -> Tensor:
        return self.one.allows(query) | self.other.allows(query)

    def factorizes(self, query: Query) -> bool:
        return self.one.factorizes(query) or self.other.factorizes(query)

    def __str__(self) -> str:
        return f"{self.one}, or {self.other}"


_ANY = AnyQuery()


def answers_of(conditional: object) -> Answers:
    """What `conditional` declares; any query, if it declares nothing.

    Raises:
        FlexgenError: its ``answers`` is no declaration.
    """
    found = getattr(conditional, "answers", _ANY)
    if not isinstance(found, Answers):
        fix = "Set it to a value of flexgen.answers, such as CompleteConditionals()."
        raise FlexgenError("answers", f"of {type(conditional).__name__} is {found!r}", fix)
    return found


def check_query(conditional: object, query: Query, *, fix: str = "") -> None:
    """Raises unless `conditional` declares that it answers `query`; free where it answers any.

    Raises:
        UnsupportedQueryError: names the query, what the conditional answers, and the fix.
    """
    answers = answers_of(conditional)
    if isinstance(answers, AnyQuery) or answers.allows_all(query):
        return
    allowed = answers.allows(query)
    where, one = "", query
    if query.is_batched:
        row = int((~allowed).nonzero()[0])
        where, one = f" in row {row}", Query(query.target[row], query.observed[row])
    raise UnsupportedQueryError(
        "query",
        f"is {one!r}{where}, which {type(conditional).__name__} does not answer: it answers only {answers}",
        fix or "Ask what it answers, for example by Gibbs sampling with the observed sites clamped.",
    )
