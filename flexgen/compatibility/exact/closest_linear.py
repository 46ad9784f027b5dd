"""The two closest joints that are measured by differences of probabilities: a linear programme and least squares.

Both look at A r, with entries r(x_P, x_C) - q(x_P | x_C) r(x_C): zero iff r has the conditionals where it has mass.

LP:  min_r max |A r|.   For any y with Σ|y| <= 1 and any law r: max |A r| >= y'A r >= min_x (A'y)(x), a lower bound.
L2:  min_r |A r|².       With g = 2 A'A r: |A p|² >= |A r|² + g'(p - r) >= min_x g(x) - |A r|², a lower bound.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.optimize import linprog
from scipy.sparse import csr_matrix, hstack, vstack

from flexgen.compatibility.exact.family import ConditionalFamily
from flexgen.compatibility.exact.graph import Bools, Floats, line_numbers
from flexgen.errors import FlexgenError

__all__ = ["MAX_LINEAR_STATES", "least_maximum", "least_squares", "misfit"]

MAX_LINEAR_STATES = 1 << 11
_PIVOTS = 500


def misfit(family: ConditionalFamily) -> csr_matrix:
    """A: a row for every entry of every conditional, in the order of the tables; a column a state."""
    num_states = family.num_states
    states, blocks = np.arange(num_states), []
    for law in family.conditionals:
        sites = range(family.num_sites)
        entry, num_entries = line_numbers(family.shape, [site for site in sites if site not in law.sites])
        context, _ = line_numbers(family.shape, [site for site in sites if site not in law.observed])
        size = math.prod(family.shape[site] for site in law.target)
        order = [*law.target, *(site for site in sites if site not in law.target)]
        of_context = np.arange(num_entries).reshape(law.table.shape).transpose(order).reshape(size, -1)  # [V_P, V_C]
        rows = np.concatenate([entry, of_context[:, context].reshape(-1)])
        columns = np.concatenate([states, np.tile(states, size)])
        values = np.concatenate([np.ones(num_states), -law.table.numpy().reshape(-1)[rows[num_states:]]])
        blocks.append(csr_matrix((values, (rows, columns)), shape=(num_entries, num_states)))
    return csr_matrix(vstack(blocks))


def require_size(family: ConditionalFamily, what: str) -> None:
    """Refuses families that a solver would take hours for."""
    if family.num_states > MAX_LINEAR_STATES:
        raise FlexgenError(
            "tables",
            f"have {family.num_states} states, but {what} takes at most {MAX_LINEAR_STATES}",
            "Use kind='I' or 'AG', or blocks of fewer sites.",
        )


def least_maximum(family: ConditionalFamily) -> tuple[Floats, float, float]:
    """The law with the least max |A r|: law, objective and lower bound, both probabilities."""
    require_size(family, "the linear programme")
    matrix = misfit(family)
    count = matrix.shape[0]
    ones = csr_matrix(np.ones((count, 1)))
    found = linprog(
        np.append(np.zeros(family.num_states), 1.0),
        A_ub=vstack([hstack([matrix, -ones]), hstack([-matrix, -ones])]),
        b_ub=np.zeros(2 * count),
        A_eq=np.append(np.ones(family.num_states), 0.0)[None],
        b_eq=[1.0],
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if found.x is None:
        raise FlexgenError("tables", f"are beyond the solver: {found.message}", "Use kind='I' or kind='AG'.")
    law = np.maximum(found.x[:-1], 0.0)
    law /= law.sum()
    dual = found.ineqlin.marginals[count:] - found.ineqlin.marginals[:count]
    dual /= max(1.0, float(np.abs(dual).sum()))
    bound = max(0.0, float((matrix.T @ dual).min()))
    return law, float(np.abs(matrix @ law).max()), bound


def least_squares(family: ConditionalFamily) -> tuple[Floats, float, float]:
    """The law with the least |A r|²: law, objective and lower bound."""
    require_size(family, "least squares")
    matrix = misfit(family)
    hessian = (matrix.T @ matrix).toarray()
    # Over y >= 0 the minimum of |A y|² + (Σ y - 1)² has the direction of the answer: its value at the best scaling of a
    # law r is |A r|² / (1 + |A r|²).
    law = _nonnegative(hessian + 1.0, np.ones(family.num_states))
    law /= law.sum()
    gradient = 2 * (hessian @ law)
    objective = float(np.square(matrix @ law).sum())
    return law, objective, max(0.0, float(gradient.min()) - objective)


def _nonnegative(hessian: Floats, right: Floats) -> Floats:
    """min ½ y'Hy - b'y over y >= 0 by block principal pivoting (Portugal, Judice & Vicente 1994; Kim & Park 2011)."""
    free = np.ones(len(right), dtype=bool)
    fewest, patience = len(right) + 1, 3
    y = np.zeros_like(right)
    for _ in range(_PIVOTS):
        y, slack = _restricted(hessian, right, free)
        wrong = np.where(free, y < -1e-14, slack < -1e-12)
        if not wrong.any():
            return np.maximum(y, 0.0)
        if wrong.sum() < fewest:
            fewest, patience = int(wrong.sum()), 3
        elif patience:
            patience -= 1
        else:  # one exchange at a time cannot cycle
            wrong = np.arange(len(wrong)) == np.flatnonzero(wrong)[-1]
        free = free ^ wrong
    return np.maximum(y, 0.0)


def _restricted(hessian: Floats, right: Floats, free: Bools) -> tuple[Floats, Floats]:
    """The minimum with y = 0 outside `free`, and the gradient there."""
    y = np.zeros_like(right)
    part = hessian[np.ix_(free, free)]
    try:
        y[free] = cho_solve(cho_factor(part), right[free])
    except LinAlgError:  # several joints: any of the minima
        y[free] = np.linalg.lstsq(part, right[free], rcond=None)[0]
    return y, np.where(free, 0.0, hessian @ y - right)
