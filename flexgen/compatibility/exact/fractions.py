"""Families of fractions, decided in exact arithmetic: which states a joint may give mass, and whether it is the only one.

The joints are the r >= 0 with A r = 0, a row r(x_P, x_C) - q(x_P | x_C) r(x_C) for every entry of every table. Sums of
such r are such r, so one of them has mass wherever any has. Gauss-Jordan elimination leaves r_B = -R r_F over few free
states F, and the simplex method with Bland's rule finds laws that cover more states until a last programme proves that
no law covers any other. Nothing is rounded, so nothing is decided by a tolerance.

A table is stated in floating point, and 0.1 is no binary fraction: an entry stands for the simplest fraction that
rounds to it, if that is far simpler than what a number at random would have, and the entries of a distribution sum to
one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from sympy import QQ
from sympy.polys.matrices import DomainMatrix

from flexgen.compatibility.exact.family import ConditionalFamily, ConditionalLaw
from flexgen.compatibility.exact.graph import Bools, Floats, line_numbers

__all__ = ["MAX_STATES", "ExactLaws", "exact_laws"]

MAX_STATES = 64  # two seconds; 128 can take half a minute
_ROUNDINGS = 4  # an entry was divided by a sum that is one but for rounding
_CHANCE = 0.01  # expected number of fractions as simple that a number at random would be taken for
_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class ExactLaws:
    """All joints of a family of fractions, in short.

    Args:
        law: ``[S]``, with mass wherever a joint has any; sums to one, or is zero where there is no joint.
        dimension: of the set of joints: 0 where there is one, -1 where there is none.
    """

    law: Floats
    dimension: int


def exact_laws(family: ConditionalFamily) -> ExactLaws | None:
    """The joints of `family`, exactly; None if its tables are not of fractions, or of more than 64 states."""
    if family.num_states > MAX_STATES:
        return None
    rows: list[dict[int, Fraction]] = []
    dead = np.zeros(family.num_states, dtype=bool)
    for law in family.conditionals:
        tables = _fractions_of(law)
        if tables is None:
            return None
        sites = range(family.num_sites)
        event, _ = line_numbers(family.shape, [site for site in sites if site not in law.sites])
        context, _ = line_numbers(family.shape, [site for site in sites if site not in law.observed])
        for number, fraction in enumerate(tables):
            inside = np.flatnonzero(event == number)
            if not fraction:
                dead[inside] = True
                continue
            row = dict.fromkeys(np.flatnonzero(context == context[inside[0]]).tolist(), -fraction)
            for state in inside.tolist():
                row[state] += 1
            rows.append(row)
    live = np.flatnonzero(~dead)
    matrix = _reduced(rows, live)
    law, covered = _cover(matrix, len(live))
    whole = np.zeros(family.num_states)
    whole[live] = law
    if not covered.any():
        return ExactLaws(whole, -1)
    kept = np.flatnonzero(covered)
    place = {int(state): k for k, state in enumerate(kept)}
    inner = [{place[s]: v for s, v in row.items() if s in place} for row in matrix.values()]
    rank = len(_rref([row for row in inner if row], len(kept)))
    return ExactLaws(whole, len(kept) - rank - 1)


def _fractions_of(law: ConditionalLaw) -> list[Fraction] | None:
    """The entries of a conditional's table, flattened, as the fractions that they stand for."""
    num_targets = len(law.target)
    axes = [*law.target, *(axis for axis in range(law.table.ndim) if axis not in law.target)]
    values = law.table.permute(axes).reshape(math.prod(law.table.shape[axis] for axis in law.target), -1).numpy()
    places = np.arange(law.table.numel()).reshape(law.table.shape).transpose(axes).reshape(values.shape)
    assert num_targets
    out = [Fraction(0)] * law.table.numel()
    for column in range(values.shape[1]):
        entries = values[:, column].tolist()
        largest = max(range(len(entries)), key=entries.__getitem__)
        total = Fraction(0)
        for k, entry in enumerate(entries):
            if k != largest:
                fraction = _simplest(entry)
                if fraction is None:
                    return None
                out[places[k, column]] = fraction
                total += fraction
        rest = 1 - total
        if abs(float(rest) - entries[largest]) > _ROUNDINGS * _EPS * len(entries):
            return None
        out[places[largest, column]] = rest
    return out


def _simplest(value: float) -> Fraction | None:
    """The fraction of least denominator that rounds to `value`, if it is too simple to be there by chance."""
    if value == 0:
        return Fraction(0)
    exact = Fraction(value)
    width = exact * Fraction(_ROUNDINGS * _EPS)
    found = _simplest_between(exact - width, exact + width)
    return found if float(2 * width) * found.denominator**2 < _CHANCE else None


def _simplest_between(low: Fraction, high: Fraction) -> Fraction:
    """By continued fractions (Stern 1858): the fraction of least denominator in [low, high], 0 < low <= high."""
    whole = math.ceil(low)
    if whole <= high:
        return Fraction(whole)
    floor = math.floor(low)
    return floor + 1 / _simplest_between(1 / (high - floor), 1 / (low - floor))


def _reduced(rows: list[dict[int, Fraction]], live: np.ndarray) -> dict[int, dict[int, Fraction]]:
    """The reduced rows over live states: {basic state: {state: coefficient}}, each with 1 at its basic state."""
    place = {int(state): k for k, state in enumerate(live)}
    inside = [{place[s]: v for s, v in row.items() if s in place and v} for row in rows]
    return _rref([row for row in inside if row], len(live))


def _rref(rows: list[dict[int, Fraction]], num_columns: int) -> dict[int, dict[int, Fraction]]:
    if not rows or not num_columns:
        return {}
    stated = {k: {s: QQ(v.numerator, v.denominator) for s, v in row.items()} for k, row in enumerate(rows)}
    reduced, pivots = DomainMatrix(stated, (len(rows), num_columns), QQ).rref()
    dense = reduced.rep.to_sdm()
    return {
        pivot: {int(s): Fraction(int(v.numerator), int(v.denominator)) for s, v in dense[k].items()}
        for k, pivot in enumerate(pivots)
    }


def _cover(matrix: dict[int, dict[int, Fraction]], num_states: int) -> tuple[Floats, Bools]:
    """A law with mass wherever any has, and where that is.

    The dictionary of the simplex method: basic states b in terms of free ones, r_b = -Σ_f R_bf r_f, and the slack
    1 - Σ r, which bounds the programme. At r = 0 it is feasible.
    """
    free = [state for state in range(num_states) if state not in matrix]
    basic = [*matrix, num_states]  # the slack comes last
    table = [[-row.get(f, Fraction(0)) for f in free] for row in matrix.values()]
    constant = [Fraction(0)] * len(matrix) + [Fraction(1)]
    table.append([-(1 + sum(row[k] for row in table)) for k in range(len(free))])
    law, covered = np.zeros(num_states), np.zeros(num_states, dtype=bool)
    while not covered.all():
        _maximise(table, constant, basic, free, [not covered[s] for s in range(num_states)] + [False])
        mass = {b: c for b, c in zip(basic, constant, strict=True) if b < num_states and c > 0}
        new = [state for state in mass if not covered[state]]
        if not new:
            break
        for state, value in mass.items():
            law[state] += float(value)
            covered[state] = True
    total = law.sum()
    return law / total if total else law, covered


def _maximise(
    table: list[list[Fraction]], constant: list[Fraction], basic: list[int], free: list[int], wanted: list[bool]
) -> None:
    """Pivots to the maximum of the mass of wanted states, by Bland's rule, which cannot cycle."""
    while True:
        gain = [
            sum((row[k] for row, b in zip(table, basic, strict=True) if wanted[b]), Fraction(int(wanted[f])))
            for k, f in enumerate(free)
        ]
        entering = min((f, k) for k, f in enumerate(free) if gain[k] > 0) if any(g > 0 for g in gain) else None
        if entering is None:
            return
        k = entering[1]
        limits = [(constant[i] / -row[k], basic[i], i) for i, row in enumerate(table) if row[k] < 0]
        i = min(limits)[2]  # there is one: the slack falls with every state
        row, pivot = table[i], table[i][k]
        # basic = constant + row . free, solved for the entering state
        solved = [-value / pivot for value in row]
        solved[k] = 1 / pivot
        start = -constant[i] / pivot
        for other, values in enumerate(table):
            if other == i or not values[k]:
                continue
            factor = values[k]
            constant[other] += factor * start
            table[other] = [
                factor * solved[c] if c == k else value + factor * solved[c] for c, value in enumerate(values)
            ]
        table[i], constant[i] = solved, start
        basic[i], free[k] = free[k], basic[i]
