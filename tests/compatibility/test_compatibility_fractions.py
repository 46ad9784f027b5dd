"""Families of fractions that marginalise sites out, against all vertices of the set of joints, in exact arithmetic."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch

from flexgen.compatibility import ConditionalFamily, check_tables
from flexgen.compatibility.exact import programmes
from flexgen.compatibility.exact.programmes import Cone, find_chain

Entry = dict[tuple[int, ...], Fraction]  # x_P and x_C, in this order -> probability
Stated = tuple[tuple[int, ...], tuple[int, ...], Entry]


def conditional_of(joint: Entry, shape: Sequence[int], target: tuple[int, ...], observed: tuple[int, ...]) -> Entry:
    """p(x_P | x_C) of a joint; uniform where x_C has no mass."""
    out = {}
    size = math.prod(shape[s] for s in target)
    for context in itertools.product(*(range(shape[s]) for s in observed)):
        inside = {x: p for x, p in joint.items() if tuple(x[s] for s in observed) == context}
        total = sum(inside.values(), Fraction(0))
        for event in itertools.product(*(range(shape[s]) for s in target)):
            mass = sum((p for x, p in inside.items() if tuple(x[s] for s in target) == event), Fraction(0))
            out[event + context] = mass / total if total else Fraction(1, size)
    return out


def random_joint_of(rng: random.Random, shape: Sequence[int]) -> Entry:
    """Whole numbers over their sum, some zero, now and then some a thousand millions times as large as others."""
    scale = rng.choice([1, 1, 1, 10**3, 10**9])
    empty = rng.choice([0.0, 0.0, 0.2, 0.5])
    weight = {
        x: 0 if rng.random() < empty else rng.randint(1, 9) * rng.choice([1, scale])
        for x in itertools.product(*map(range, shape))
    }
    if not any(weight.values()):
        weight[(0,) * len(shape)] = 1
    total = sum(weight.values())
    return {x: Fraction(w, total) for x, w in weight.items()}


def random_table(rng: random.Random, shape: Sequence[int], target: tuple[int, ...], observed: tuple[int, ...]) -> Entry:
    out = {}
    for context in itertools.product(*(range(shape[s]) for s in observed)):
        events = list(itertools.product(*(range(shape[s]) for s in target)))
        weights = [rng.choice([0, 1, 1, 1, 5, 9]) for _ in events]
        weights[rng.randrange(len(events))] += 1
        out |= {e + context: Fraction(w, sum(weights)) for e, w in zip(events, weights, strict=True)}
    return out


def random_family(rng: random.Random, shape: Sequence[int]) -> list[Stated]:
    """Conditionals of one joint, or of a joint but for some tables, or tables at random; never one that chains."""
    sites = range(len(shape))
    while True:
        stated: list[Stated] = []
        joint, wrong = random_joint_of(rng, shape), rng.choice([0.0, 0.0, 0.3, 1.0])
        for _ in range(rng.randint(2, 4)):
            target = tuple(sorted(rng.sample(sites, rng.choice([1, 1, 1, 2][: 2 * len(shape) - 1]))))
            rest = [s for s in sites if s not in target]
            observed = tuple(sorted(rng.sample(rest, rng.randint(0, len(rest)))))
            other = wrong and rng.random() < wrong
            entries = random_table if other else conditional_of
            table = entries(rng if other else joint, shape, target, observed)  # type: ignore[operator]
            stated.append((target, observed, table))
        family = as_floats(shape, stated) if {s for t, o, _ in stated for s in t + o} == set(sites) else None
        if family is not None and find_chain(family) is None and not family.is_complete:
            return stated


def as_floats(shape: Sequence[int], stated: Sequence[Stated]) -> ConditionalFamily:
    tables = []
    for target, observed, entries in stated:
        sizes = [shape[s] for s in target + observed]
        flat = [float(entries[key]) for key in itertools.product(*map(range, sizes))]
        tables.append((target, observed, torch.tensor(flat, dtype=torch.float64).view(sizes)))
    return ConditionalFamily(shape, tables)


def vertices(shape: Sequence[int], stated: Sequence[Stated]) -> list[set[tuple[int, ...]]]:
    """The supports of the extreme joints: sets of states whose columns of A have one dependence, and that positive."""
    states = list(itertools.product(*map(range, shape)))
    rows = []
    for target, observed, entries in stated:
        for key, q in entries.items():
            event, context = key[: len(target)], key[len(target) :]
            inside = [tuple(x[s] for s in observed) == context for x in states]
            hits = [i and tuple(x[s] for s in target) == event for i, x in zip(inside, states, strict=True)]
            rows.append([Fraction(h) - q * i for h, i in zip(hits, inside, strict=True)])
    rows = [list(row) for row in {tuple(row) for row in rows} if any(row)]
    found: list[set[tuple[int, ...]]] = []
    for size in range(1, len(states) + 1):
        for chosen in itertools.combinations(range(len(states)), size):
            if any(support <= {states[c] for c in chosen} for support in found):
                continue
            if positive_dependence([[row[c] for c in chosen] for row in rows]):
                found.append({states[c] for c in chosen})
    return found


def positive_dependence(rows: list[list[Fraction]]) -> bool:
    """Whether the columns have exactly one dependence, with all coefficients of one sign, none zero."""
    num_columns = len(rows[0])
    rank, pivots = 0, []
    rows = [row[:] for row in rows]
    for column in range(num_columns):
        pivot = next((k for k in range(rank, len(rows)) if rows[k][column]), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        first = rows[rank] = [value / rows[rank][column] for value in rows[rank]]
        for k, row in enumerate(rows):
            if k != rank and row[column]:
                rows[k] = [value - row[column] * one for value, one in zip(row, first, strict=True)]
        pivots.append(column)
        rank += 1
    if rank != num_columns - 1:
        return False
    free = next(c for c in range(num_columns) if c not in pivots)
    return all(rows[k][free] < 0 for k in range(rank))


def brute_force(shape: Sequence[int], stated: Sequence[Stated]) -> tuple[str, bool | None]:
    supports = vertices(shape, stated)
    if not supports:
        return "incompatible", None
    covered = set().union(*supports)
    covers = all(
        any(tuple(x[s] for s in observed) == context for x in covered)
        for _, observed, _ in stated
        for context in itertools.product(*(range(shape[s]) for s in observed))
    )
    return "compatible" if covers else "weakly compatible", len(supports) == 1


def compare(shape: Sequence[int], number: int, seed: int) -> Counter[tuple[str, bool | None]]:
    rng, seen = random.Random(seed), Counter[tuple[str, bool | None]]()
    for _ in range(number):
        stated = random_family(rng, shape)
        family, expected = as_floats(shape, stated), brute_force(shape, stated)
        found = check_tables(family)
        if expected[0] == "incompatible" and found.joint is not None:
            # Within the tolerance, as documented: shown by the joint itself.
            assert Cone(family, found.tolerance).misfit(found.joint.p.flatten().numpy()) <= found.tolerance + 1e-7
            expected = found.verdict, found.unique
        assert (found.verdict, found.unique) == expected, stated
        seen[expected] += 1
    return seen


@pytest.mark.parametrize(("shape", "number"), [((2, 2), 1500), ((2, 3), 500)])
def test_verdicts_of_random_families(shape: tuple[int, ...], number: int) -> None:
    seen = compare(shape, number, seed=0)
    assert min(seen[key] for key in [("compatible", False), ("weakly compatible", True), ("incompatible", None)]) > 10


def test_verdicts_within_a_tolerance_are_those_of_fractions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The route of tables that are not of fractions, on families of fractions."""
    monkeypatch.setattr(programmes, "exact_joints", lambda _family: None)
    assert compare((2, 2), 300, seed=3) & compare((2, 3), 150, seed=4)


def test_verdicts_of_random_families_of_three_sites() -> None:
    seen = compare((2, 2, 2), 60, seed=1)
    assert {verdict for verdict, _ in seen} == {"compatible", "weakly compatible", "incompatible"}


@pytest.mark.slow
def test_verdicts_of_many_random_families_of_three_sites() -> None:
    compare((2, 2, 2), 600, seed=2)


def test_an_event_that_is_forced_to_be_impossible_stays_impossible() -> None:
    """p(b | a) and p(b) leave no mass to a = 1, with or without p(a) = (1, 0), which they imply."""

    def table(rows: list[object]) -> torch.Tensor:
        return torch.tensor(rows, dtype=torch.float64)

    stated = [(1, [0], table([[0.5, 0.9], [0.5, 0.1]])), (1, [], table([0.5, 0.5]))]
    for family in (stated, [*stated, (0, [], table([1.0, 0.0]))]):
        found = check_tables(ConditionalFamily((2, 2), family))
        assert (found.verdict, found.unique) == ("weakly compatible", True)
        assert found.joint is not None
        torch.testing.assert_close(found.joint.p, table([[0.5, 0.5], [0.0, 0.0]]))
