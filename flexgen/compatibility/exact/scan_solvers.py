"""The law that a scan's chain leaves as it is: by elimination of states, or without a kernel by GMRES."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, gmres
from torch import Tensor

from flexgen.compatibility.exact.graph import Floats
from flexgen.compatibility.exact.scan_chain import ScanChain
from flexgen.exact import kernels

__all__ = ["ROUNDING", "eliminated", "krylov", "spectral_gap"]

ROUNDING = 1e-16  # of πK, in total variation
_WARM_UP, _KRYLOV, _RESTARTS, _SMOOTHING, _ARNOLDI = 20, 80, 25, 20, 20


def eliminated(chain: ScanChain, members: np.ndarray, tolerance: float) -> Tensor:
    """The law of one closed class by elimination of its states."""
    inside = torch.from_numpy(members)
    points = torch.zeros(len(members), chain.num_states, dtype=torch.float64)
    points[torch.arange(len(members)), inside] = 1.0
    moved = chain.move(points.view(len(members), *chain.shape)).reshape(len(members), -1)  # contiguous as tables are
    rows = moved[:, inside]
    law = torch.zeros(chain.num_states, dtype=torch.float64)
    law[inside] = kernels.stationary(rows / rows.sum(-1, keepdim=True), tolerance=tolerance)
    return law.view(chain.shape)


def krylov(chain: ScanChain, members: np.ndarray, tolerance: float) -> tuple[Tensor, float]:
    """π(I - K) = 0 with Σ π = 1, by restarted GMRES on the states of one closed class; and how far πK is from π."""
    start = torch.zeros(chain.num_states, dtype=torch.float64)
    start[torch.from_numpy(members)] = 1 / len(members)
    law = start.view(chain.shape)
    for _ in range(_WARM_UP):
        law = chain.move(law)

    def moved(vector: Floats) -> Floats:
        return np.asarray(chain.move(torch.from_numpy(vector).view(chain.shape)).flatten())

    def balance(vector: Floats) -> Floats:  # π - πK + (Σ π) law: singular no more, and solved by Σ π = 1
        vector = vector.reshape(-1)
        return vector - moved(vector) + float(vector.sum()) * right

    right = law.flatten().numpy()
    operator = LinearOperator((chain.num_states,) * 2, matvec=balance, dtype=np.float64)
    solution, accuracy = right, 0.1 * tolerance / math.sqrt(chain.num_states)  # |v|_1 <= sqrt(S) |v|_2
    for _ in range(_RESTARTS):
        solution, _ = gmres(operator, right, x0=solution, rtol=0.0, atol=accuracy, restart=_KRYLOV, maxiter=1)
        law = torch.from_numpy(solution).clamp_min(0.0).view(chain.shape)
        for _ in range(_SMOOTHING):  # entries below the solver's accuracy come right by moving the law along
            law = chain.move(law)
        law = law / law.sum()
        error = 0.5 * float((chain.move(law) - law).abs().sum())
        if error <= tolerance:
            break
        solution = law.flatten().numpy()
    return law, error


def spectral_gap(chain: ScanChain, members: np.ndarray, law: Tensor) -> float:
    """About 1 - |λ_2| of a closed class, by Arnoldi's method on differences of laws: slow modes come out first."""
    start = np.zeros(chain.num_states)
    start[members] = np.random.default_rng(0).standard_normal(len(members))
    start -= float(start.sum()) * law.flatten().numpy()
    basis = np.zeros((_ARNOLDI + 1, chain.num_states))
    basis[0] = start / np.linalg.norm(start)
    upper = np.zeros((_ARNOLDI + 1, _ARNOLDI))
    size = _ARNOLDI
    for k in range(_ARNOLDI):
        moved = np.asarray(chain.move(torch.from_numpy(basis[k]).view(chain.shape)).flatten())
        moved -= float(moved.sum()) * law.flatten().numpy()
        for _ in range(2):  # once is not enough to rounding
            share = basis[: k + 1] @ moved
            upper[: k + 1, k] += share
            moved -= share @ basis[: k + 1]
        upper[k + 1, k] = np.linalg.norm(moved)
        if upper[k + 1, k] < 1e-14:
            size = k + 1
            break
        basis[k + 1] = moved / upper[k + 1, k]
    slowest = float(np.linalg.eigvals(upper[:size, :size]).real.max())
    return max(1 - slowest, ROUNDING)
