"""Any set of conditionals p(x_P | x_C) over finite sites, as tables that need not share a joint.

`ConditionalFamily` is what the exact tier reads. `fg.exact.ConditionalTables` (all complete conditionals) converts by
itself, with or without category labels. Nothing is said about sites that a conditional names neither as target nor as
observed: they are marginalised out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from flexgen.checks import is_number, kind_of, whole_number
from flexgen.errors import FlexgenError, UnsupportedQueryError
from flexgen.exact import ConditionalTables
from flexgen.exact.kernels import Block, as_block

__all__ = [
    "MAX_STATES",
    "ConditionalFamily",
    "Labels",
    "StatedConditional",
    "Violation",
    "as_family",
    "check_tolerance",
    "loop_violation",
    "support_violation",
]

Labels: TypeAlias = Mapping[str, Sequence[Hashable]] | Sequence[Sequence[Hashable]]

MAX_STATES = 1 << 16
_LOOKS_ROUNDED = 0.02  # thirds with two digits sum to .99
_SUM_TOLERANCE = 1e-6  # as in flexgen.exact: a table that was rounded to float32 still counts as normalised


@dataclass(frozen=True, eq=False)
class StatedConditional:
    """One conditional of a family.

    Args:
        target: P, ascending.
        observed: C, ascending.
        table: float64, one axis a site, of size one at sites in neither; sums to one over the axes of P.
    """

    target: tuple[int, ...]
    observed: tuple[int, ...]
    table: Tensor

    @property
    def sites(self) -> frozenset[int]:
        """P and C together."""
        return frozenset(self.target + self.observed)

    def at(self, state: Sequence[int]) -> float:
        """The stated probability at a state, given as one code a site."""
        sizes = self.table.shape
        return float(self.table[tuple(0 if size == 1 else code for code, size in zip(state, sizes, strict=True))])


class ConditionalFamily:
    """Conditionals p(x_P | x_C) over N finite sites, which may or may not belong to one joint.

    Args:
        shape: (V_0, .., V_{N-1}), the number of categories of every site; at most 2^16 states in all.
        conditionals: (target, observed, table) each. The table has one axis a target site and then one an observed
            site, in the order in which they are listed, and sums to one over the target's axes (within 1e-6; then
            divided by its sum). `observed` may be empty: a marginal.
        labels: what users call sites and categories: a mapping of site names to their categories, in the sites' order,
            or one sequence of categories a site. Default: x0, x1, .. with categories 0, 1, ..

    Raises:
        FlexgenError: more than 2^16 states, a site that no conditional names, tables of a wrong shape, negative or
            non-finite entries or sums other than one, and labels that do not fit; each by its name.
    """

    def __init__(
        self,
        shape: Sequence[int],
        conditionals: Iterable[tuple[int | Sequence[int], Sequence[int], Tensor]],
        *,
        labels: Labels | None = None,
    ) -> None:
        self.shape = tuple(whole_number("shape", size, 1) for size in _listed("shape", shape, "one size a site"))
        what = "(target, observed, table) of each conditional"
        self.conditionals = tuple(
            _stated_conditional(f"conditionals[{k}]", self.shape, entry)
            for k, entry in enumerate(_listed("conditionals", conditionals, what))
        )
        if not self.shape or math.prod(self.shape) > MAX_STATES:
            raise FlexgenError(
                "shape",
                f"is {self.shape}: {math.prod(self.shape)} states, but exact checks take 1 to {MAX_STATES} (2^16)",
                "Check blocks of a few sites at a time, or use fg.diagnose for measured effects.",
            )
        named = frozenset[int]().union(*(conditional.sites for conditional in self.conditionals))
        absent = [site for site in range(len(self.shape)) if site not in named]
        if absent:
            raise FlexgenError(
                "conditionals", f"name no site {absent[0]}", "Leave it out of the shape, or add a conditional with it."
            )
        self.names, self.labels = _labels(labels, self.shape)

    @classmethod
    def of_tables(cls, tables: ConditionalTables, *, labels: Labels | None = None) -> ConditionalFamily:
        """All complete conditionals p(x_i | rest), from `fg.exact.ConditionalTables`."""
        sites = range(len(tables.shape))
        orders = [(i, *(j for j in sites if j != i)) for i in sites]
        stated = [(o[:1], o[1:], table.permute(o)) for o, table in zip(orders, tables.tables, strict=True)]
        return cls(tables.shape, stated, labels=labels)

    @property
    def num_sites(self) -> int:
        return len(self.shape)

    @property
    def num_states(self) -> int:
        return math.prod(self.shape)

    @property
    def is_complete(self) -> bool:
        """Whether every conditional observes all sites but its targets."""
        return all(len(conditional.sites) == self.num_sites for conditional in self.conditionals)

    @property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """The targets of the conditionals, in the order stated: what a random scan chooses from."""
        return tuple(conditional.target for conditional in self.conditionals)

    def block_table(self, block: Block) -> Tensor:
        """The stated p(x_P | x_C) whose target P is `block`; one axis a site, of size one where it reads nothing.

        Raises:
            UnsupportedQueryError: if no conditional, or more than one, has this target.
        """
        target = tuple(sorted(as_block(block, self.num_sites)))
        found = [conditional for conditional in self.conditionals if conditional.target == target]
        if len(found) != 1:
            raise UnsupportedQueryError(
                "block",
                f"is {block!r}, the target of {len(found)} of the stated conditionals",
                f"Update targets that exactly one conditional has; this family states {sorted(set(self.blocks))}.",
            )
        return found[0].table

    def event(self, sites: Iterable[int], state: Sequence[int]) -> str:
        """``"sex=f, smoker=no"``: some sites of a state, given as one code a site, in the users' words."""
        return ", ".join(f"{self.names[site]}={self.labels[site][state[site]]}" for site in sites)

    def question(
        self, conditional: StatedConditional, state: Sequence[int], *, omitted: frozenset[int] = frozenset()
    ) -> str:
        """``"p(sex=f | smoker=no)"``: an entry of a conditional in the users' words, without sites in `omitted`."""
        said = [site for site in conditional.observed if site not in omitted]
        given = ", ".join(
            filter(None, (self.event(said, state), ".." if len(said) < len(conditional.observed) else ""))
        )
        return f"p({self.event(conditional.target, state)}{' | ' if given else ''}{given})"

    def labelled(self, state: Sequence[int], sites: frozenset[int]) -> tuple[Hashable, ...]:
        """A state's category labels, one a site; None at all sites but `sites`."""
        return tuple(self.labels[site][code] if site in sites else None for site, code in enumerate(state))

    def __repr__(self) -> str:
        what = "complete conditionals" if self.is_complete else "conditionals"
        return f"ConditionalFamily({len(self.conditionals)} {what} over {' x '.join(map(str, self.shape))} states)"


def as_family(
    tables: ConditionalTables | ConditionalFamily, labels: Labels | None = None, *, argument: str = "tables"
) -> ConditionalFamily:
    """What the functions of the exact tier are given, as a family."""
    if isinstance(tables, ConditionalFamily):
        if labels is not None:
            raise FlexgenError("labels", "are given beside a ConditionalFamily", "Pass them to ConditionalFamily.")
        return tables
    if isinstance(tables, ConditionalTables):
        return ConditionalFamily.of_tables(tables, labels=labels)
    raise FlexgenError(
        argument,
        f"is a {type(tables).__name__}",
        "Pass fg.exact.ConditionalTables or a ConditionalFamily (of a JointTable: its conditional_tables()). Of a "
        "network: fg.diagnose(model, data), or the tables of a few of its sites by fg.compatibility.exact_blocks.",
    )


def check_tolerance(tolerance: Any, unit: str = "nats") -> None:
    """Refuses what is no tolerance."""
    if not is_number(tolerance) or not 0 <= tolerance < math.inf:
        raise FlexgenError("tolerance", f"is {kind_of(tolerance)}", f"Pass a finite number of {unit}, zero or more.")


def _listed(name: str, value: Any, what: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise FlexgenError(name, f"is {kind_of(value)}", f"List {what}.")
    return tuple(value)


def _stated_conditional(name: str, shape: tuple[int, ...], entry: Any) -> StatedConditional:
    """A stated conditional, checked, with its axes in the order of the sites."""
    parts = _listed(name, entry, "its target, its observed sites and its table")
    if len(parts) != 3:
        raise FlexgenError(name, f"has {len(parts)} parts", "Pass (target, observed, table); observed may be [].")
    target, observed, table = parts
    targets = tuple(target) if isinstance(target, Iterable) and not isinstance(target, str) else (target,)
    observed = _listed(f"{name} observed", observed, "the observed sites, such as [1]")
    num_targets = len(targets)
    try:
        listed = tuple(whole_number(name, site, 0) for site in (*targets, *observed))
    except FlexgenError:
        listed = ()
    if not num_targets or len(set(listed)) < num_targets + len(observed) or max(listed) >= len(shape):
        raise FlexgenError(
            name,
            f"has target {target!r} and observed {observed}",
            f"Name at least one target, and each of the sites 0 to {len(shape) - 1} at most once.",
        )
    try:
        table = torch.as_tensor(table).detach().to("cpu", torch.float64)
    except (RuntimeError, TypeError, ValueError) as error:
        raise FlexgenError(name, f"has a table that is {kind_of(table)}", "Pass a tensor of probabilities.") from error
    expected = tuple(shape[site] for site in listed)
    if tuple(table.shape) != expected:
        raise FlexgenError(
            name,
            f"has a table of shape {tuple(table.shape)}, not {expected}",
            "Give it one axis a target site and then one an observed site, in the order listed.",
        )
    if not bool((torch.isfinite(table) & (table >= 0)).all()):
        raise FlexgenError(
            name, "has entries that are negative or not finite", "Probabilities are finite and non-negative."
        )
    sums = table.sum(tuple(range(num_targets)), keepdim=True)
    if bool(((sums - 1).abs() > _SUM_TOLERANCE).any()):
        raise _not_normalised(name, table, sums, listed, num_targets)
    order = sorted(range(len(listed)), key=listed.__getitem__)
    sizes = [shape[site] if site in listed else 1 for site in range(len(shape))]
    return StatedConditional(
        tuple(sorted(listed[:num_targets])),
        tuple(sorted(listed[num_targets:])),
        (table / sums).permute(order).reshape(sizes),
    )


def _not_normalised(name: str, table: Tensor, sums: Tensor, listed: tuple[int, ...], num_targets: int) -> FlexgenError:
    """Where a table does not sum to one, and what may have gone wrong: its axes, or digits that were cut off."""
    off = (sums - 1).abs()
    place = np.unravel_index(int(off.argmax()), tuple(sums.shape))[num_targets:]
    context = ", ".join(f"x{site}={int(code)}" for site, code in zip(listed[num_targets:], place, strict=True))
    fix = "Normalise it over the axes of its targets, which come first."
    axes = range(table.ndim)
    other = [
        kept
        for kept in itertools.combinations(axes, num_targets)
        if kept != tuple(range(num_targets)) and bool(((table.sum(kept) - 1).abs() <= _SUM_TOLERANCE).all())
    ]
    if other:
        said = "axis" if num_targets == 1 else "axes"
        fix = f"It sums to 1 over {said} {', '.join(map(str, other[0]))}: transpose it, so that targets come first."
    elif float(off.max()) < _LOOKS_ROUNDED:
        fix = "If its entries are rounded, divide it by its sums over the axes of its targets, which come first."
    worst = float(sums.flatten()[off.argmax()])
    where = f" at {context}" if context else ""
    return FlexgenError(name, f"sums to {worst:.6g} over its targets{where}, not 1", fix)


def _labels(labels: Labels | None, shape: tuple[int, ...]) -> tuple[tuple[str, ...], tuple[tuple[Hashable, ...], ...]]:
    """Names of the sites and of their categories."""
    default = tuple(f"x{site}" for site in range(len(shape)))
    if labels is None:
        return default, tuple(tuple(range(size)) for size in shape)
    groups = (
        labels.values() if isinstance(labels, Mapping) else _listed("labels", labels, "the categories of every site")
    )
    names = tuple(map(str, labels)) if isinstance(labels, Mapping) else default
    categories = tuple(
        tuple(each) if isinstance(each, str) else _listed("labels", each, "the categories of every site")
        for each in groups
    )
    if tuple(map(len, categories)) != shape:
        if isinstance(labels, Sequence) and all(isinstance(each, str) for each in labels):
            raise FlexgenError(
                "labels",
                f"are {labels!r}, names without categories",
                'Pass a dict of sites and their categories: {"sex": ["f", "m"], "smoker": ["no", "yes"]}.',
            )
        raise FlexgenError(
            "labels",
            f"name {tuple(map(len, categories))} categories, but the sites have {shape}",
            "Give one label for every category of every site, in the order of the sites.",
        )
    for name, each in zip(names, categories, strict=True):
        twice = [label for k, label in enumerate(each) if label in each[:k]]
        if twice:
            raise FlexgenError("labels", f"of {name} hold {twice[0]!r} twice", "Give each category a name of its own.")
    return names, categories


# What refutes compatibility, in the users' category labels.

_SHOWN_STEPS = 12


@dataclass(frozen=True)
class Step:
    """One move round a loop: `forward` is the probability of moving, `backward` of moving back.

    Args:
        forward: p(what the move leads to | what stays), and `forward_question` says which entry that is.
        backward: p(what it came from | what stays), and `backward_question` likewise.
    """

    forward_question: str
    forward: float
    backward_question: str
    backward: float

    def __str__(self) -> str:
        return f"{self.forward_question} = {self.forward:.6g}, back {self.backward_question} = {self.backward:.6g}"


@dataclass(frozen=True)
class Violation:
    """The worst evidence that no joint has the conditionals.

    Args:
        kind: ``"loop"``: products of conditionals round a loop of states differ by direction, which for a joint they
            cannot; ``"support"``: one conditional gives a state probability zero and another does not; ``"chain"``: two
            routes of the chain rule to one probability disagree; ``"bound"``: a linear programme shows that no
            distribution comes nearer than a distance.
        gap: nats, |log of the products' ratio|; infinite where one of them is zero, nan for ``"bound"``.
        states: the states passed, each a tuple of category labels, one a site (None where a site plays no part).
        steps: the moves, for a loop.
        explanation: one sentence.
    """

    kind: str
    gap: float
    states: tuple[tuple[Hashable, ...], ...]
    steps: tuple[Step, ...]
    explanation: str

    @property
    def ratio(self) -> float:
        """The smaller product over the larger, at most 1: exp(-gap)."""
        return math.exp(-self.gap)

    def __str__(self) -> str:
        shown = [f"  {step}" for step in self.steps[:_SHOWN_STEPS]]
        if len(self.steps) > _SHOWN_STEPS:
            shown.append(f"  .. and {len(self.steps) - _SHOWN_STEPS} more steps")
        return "\n".join([self.explanation, *shown])


def loop_violation(
    family: ConditionalFamily, states: Sequence[int], conditionals: Sequence[StatedConditional]
) -> Violation:
    """A loop of states s_0, s_1, .., s_0, the k-th move (s_k to s_{k+1}) made by the k-th of `distributions`.

    It is written in the direction in which the chain prefers to run.
    """
    codes = [tuple(int(c) for c in np.unravel_index(state, family.shape)) for state in states]
    involved = frozenset[int]().union(*(conditional.sites for conditional in conditionals))
    shared = involved - frozenset[int]().union(*(conditional.target for conditional in conditionals))
    steps = []
    for k, conditional in enumerate(conditionals):
        here, there = codes[k], codes[(k + 1) % len(codes)]
        forth, back = (family.question(conditional, code, omitted=shared) for code in (there, here))
        steps.append(Step(forth, conditional.at(there), back, conditional.at(here)))
    log_ratio = math.fsum(math.log(step.forward) - math.log(step.backward) for step in steps)
    if log_ratio < 0:
        steps = [Step(s.backward_question, s.backward, s.forward_question, s.forward) for s in reversed(steps)]
        codes = [codes[0], *reversed(codes[1:])]
    gap = abs(log_ratio)
    given = f"given {family.event(sorted(shared), codes[0])}, " if shared else ""
    factor = f"{math.exp(gap):.6g}" if gap < 500 else f"exp({gap:.6g})"
    explanation = (
        f"{given}round a loop of {len(codes)} states the conditionals multiply to {factor} times as much one way as "
        f"the other ({gap:.6g} nats); for a joint both ways are equal:"
    )
    labelled = tuple(family.labelled(code, involved) for code in codes)
    return Violation("loop", gap, labelled, tuple(steps), explanation)


def support_violation(
    family: ConditionalFamily, state: int, positive: StatedConditional, zero: StatedConditional
) -> Violation:
    """A state that one conditional moves to and another never does: an edge without a reverse."""
    code = tuple(int(c) for c in np.unravel_index(state, family.shape))
    return Violation(
        "support",
        math.inf,
        (family.labelled(code, positive.sites | zero.sites),),
        (),
        f"{family.question(positive, code)} = {positive.at(code):.6g}, but {family.question(zero, code)} = 0: "
        "a move without a way back.",
    )
