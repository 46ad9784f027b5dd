"""Finite laws as tables: a joint that answers every query, and complete conditionals that may have no joint.

Both are float64 and exact up to rounding: a table entry is a probability, sums of entries never cancel, and the
logarithm is taken last. A table over N sites has one axis a site, ``[V_0, .., V_{N-1}]``; its states are numbered
row-major, as in `Space.states`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from flexgen import rng
from flexgen.answers import CompleteConditionals
from flexgen.checks import as_numbers, entries, number, one_of, shape_of, site_numbers, usable_device
from flexgen.conditional import CategoricalMarginals, take_at, target_sites
from flexgen.errors import FlexgenError, QueryError, UnsupportedQueryError
from flexgen.exact import kernels
from flexgen.query import Query, question
from flexgen.rng import Randomness
from flexgen.space import Space

__all__ = ["ConditionalTables", "JointTable"]

_SUM_TOLERANCE = 1e-6  # a table that was rounded to float32 on its way still counts as normalised
_MOST_AXES = 64  # of a tensor
_CHUNK_ENTRIES = 1 << 21  # float64 entries of [rows, states] held at once: 16 MiB


class JointTable:
    """A joint law over categorical sites; answers every query by summing its table.

    Args:
        p: probabilities ``[V_0, .., V_{N-1}]``, non-negative, summing to one (within 1e-6; then divided by their sum).

    Raises:
        FlexgenError: entries that are negative or not finite, or a sum other than one.

    Each row of a batch costs a few passes over the table's S states, with no loop over rows; memory is bounded by
    handling rows in chunks. Conditioning on an event of probability zero raises `QueryError`, unless the target is
    empty.
    """

    def __init__(self, p: Tensor) -> None:
        p = _checked("p", p)
        total = float(p.sum())
        if abs(total - 1) > _SUM_TOLERANCE:
            raise FlexgenError(
                "p", f"sums to {total:.6g}, not 1", "Divide it by its sum, or call JointTable.from_unnormalised(p)."
            )
        self.p = p / p.sum()
        self.space = Space.categorical(p.shape)

    @classmethod
    def from_unnormalised(cls, weights: Tensor) -> JointTable:
        """The law proportional to `weights`, non-negative and not all zero."""
        weights = _checked("weights", weights)
        if not weights.any():
            raise FlexgenError("weights", "are all zero", "Give at least one state a positive weight.")
        return cls(weights / weights.sum())

    @classmethod
    def random(cls, shape: Sequence[int], *, generator: Randomness, concentration: float = 1.0) -> JointTable:
        """A positive joint with weights Exp(1) ** (1 / concentration): for tests and examples."""
        shape = shape_of("shape", shape)
        number("concentration", concentration, 1e-2, 1e6)
        u = rng.uniform((1, math.prod(shape)), generator=generator, dtype=torch.float64)
        weights = (-torch.log1p(-u)).clamp_min(1e-12) ** (1 / concentration)
        return cls.from_unnormalised(weights.view(*shape))  # [1, S] -> [V_0, .., V_{N-1}]

    @property
    def shape(self) -> tuple[int, ...]:
        """(V_0, .., V_{N-1})."""
        return tuple(self.p.shape)

    def to(self, device: torch.device | str) -> JointTable:
        device = usable_device("device", device)
        return JointTable(self.p.to(device))

    def log_prob(self, x: Tensor, query: Query) -> Tensor:
        """log p(x_P | x_C) in nats, float64 ``[B]``; -inf where the target has probability zero."""
        query = question(x, query)
        self.space.validate(x, where=query.observed | query.target)
        pieces = [x.new_zeros(0, dtype=torch.float64)]
        for rows in _chunks(len(x), self.p.numel()):
            part = query[rows]
            evidence = self._evidence(self._mass(x[rows], part.observed), part, rows.start)
            both = self._mass(x[rows], part.observed | part.target)
            log_ratio = both.log() - evidence.log()
            pieces.append(torch.where(part.target.any(-1), log_ratio, 0.0))
        return torch.cat(pieces)

    def sample(self, x: Tensor, query: Query, *, generator: Randomness) -> Tensor:
        """x with the target drawn jointly from p(x_P | x_C); one uniform number a row."""
        query = question(x, query)
        self.space.validate(x, where=query.observed)
        u = rng.uniform((len(x),), generator=generator, dtype=torch.float64)
        out = x.clone()
        for rows in _chunks(len(x), self.p.numel()):
            part = query[rows]
            cdf = self._weights(x[rows], part.observed).cumsum(-1)  # [b, S]
            total = self._evidence(cdf[:, -1], part, rows.start)
            # Rounding must not reach the total, which would step past the last state that has mass.
            threshold = torch.minimum(u[rows] * total, torch.nextafter(total, torch.zeros_like(total)))
            state = torch.searchsorted(cdf, threshold[:, None], right=True)[:, 0]  # first state with cdf > threshold
            draw = torch.stack(_unravel(state, self.shape), dim=-1)  # [b, N]
            out[rows] = torch.where(part.target, draw.to(x.dtype), x[rows])
        return out

    def marginals(self, x: Tensor, query: Query, *, sites: Tensor | None = None) -> CategoricalMarginals:
        """p(x_i | x_C) at every site, targets or not (a point mass at observed sites), or at named ones alone.

        Args:
            sites: int64 ``[S]`` or ``[B, S]``; the answer is ``[B, S, K]``. None: all, ``[B, N, K]``.
        """
        query = question(x, query)
        self.space.validate(x, where=query.observed)
        last = None if sites is None or not sites.numel() else int(sites.max())  # those behind it cost nothing
        log_probs = x.new_full((len(x), len(self.shape), max(self.shape)), -math.inf, dtype=torch.float64)
        for rows in _chunks(len(x), self.p.numel()):
            part = query[rows]
            weights = self._weights(x[rows], part.observed)
            evidence = self._evidence(weights.sum(-1), part, rows.start)
            for site, size in enumerate(self.shape[: len(self.shape) if last is None else last + 1]):
                weights = weights.view(len(weights), size, -1)  # [b, V_site, states of the later sites]
                log_probs[rows, site, :size] = (weights.sum(-1) / evidence[:, None]).log()
                weights = weights.sum(1)
        if sites is not None:
            log_probs = take_at(log_probs, sites)
        # Rows with an empty target may observe an impossible event; their answers must still be finite.
        impossible = log_probs.isnan()
        return CategoricalMarginals(log_probs.masked_fill(impossible, 0.0).log_softmax(-1))

    def start(self, x: Tensor, query: Query) -> _TableDecoder:
        """A decoder: it holds the states that are left, ``[B, S]``, which every further site halves at least."""
        query = query.expand(len(x))
        self.space.validate(x, where=query.observed)
        return _TableDecoder(self, x, query)

    def marginal(self, sites: Sequence[int]) -> JointTable:
        """The joint of some sites, in the order given."""
        sites = site_numbers("sites", sites, len(self.shape))
        if not sites:
            raise FlexgenError("sites", "is empty", "Name at least one site.")
        others = [site for site in range(len(self.shape)) if site not in set(sites)]
        p = self.p.sum(others) if others else self.p
        kept = sorted(sites)
        return JointTable(p.permute([kept.index(site) for site in sites]))

    def block_table(self, block: int | Sequence[int], *, undefined: Literal["error", "uniform"] = "error") -> Tensor:
        """p(x_block | rest) for every state, ``[V_0, .., V_{N-1}]``; sums to one over the axes of `block`.

        Args:
            block: a site, or several that are updated together.
            undefined: what to do where the rest has probability zero: raise, or put the uniform law there (no
                invariance is lost, since the joint never visits these states).
        """
        axes = kernels.as_block(block, len(self.shape))
        one_of("undefined", undefined, ("error", "uniform"))
        rest = self.p.sum(axes, keepdim=True)
        if undefined == "uniform":
            return torch.where(rest > 0, self.p / rest, 1 / math.prod(self.shape[axis] for axis in axes))
        if (rest == 0).any():
            raise FlexgenError(
                "p",
                f"leaves p(x_i | rest) undefined for i in {axes}: {int((rest == 0).sum())} states of the other sites "
                "have probability zero",
                "Pass undefined='uniform' to conditional_tables or block_table, or give every state some mass.",
            )
        return self.p / rest

    def conditional_tables(self, *, undefined: Literal["error", "uniform"] = "error") -> ConditionalTables:
        """The complete conditionals p(x_i | rest) of all sites; `undefined` as in `block_table`."""
        return ConditionalTables([self.block_table(site, undefined=undefined) for site in range(len(self.shape))])

    def __repr__(self) -> str:
        return f"JointTable({' x '.join(map(str, self.shape))} states)"

    def _indicators(self, x: Tensor, fixed: Tensor) -> Iterator[Tensor]:
        """For each site, ``[b, V]``: one where the value agrees with x or the site is not fixed, else zero."""
        codes = torch.where(fixed, x, 0).long()
        for site, size in enumerate(self.shape):
            agrees = codes[:, site, None] == torch.arange(size, device=x.device)
            yield (agrees | ~fixed[:, site, None]).to(self.p.dtype)

    def _mass(self, x: Tensor, fixed: Tensor) -> Tensor:
        """p(x_fixed), ``[b]``: sums the sites out one after the other, each step shrinking the table."""
        mass = self.p.reshape(1, -1)
        for indicator, size in zip(self._indicators(x, fixed), self.shape, strict=True):
            if len(mass) == 1:
                mass = indicator @ mass.view(size, -1)  # first site, all rows share the table: [b, later states]
            else:
                mass = (indicator[:, :, None] * mass.view(len(mass), size, -1)).sum(1)  # [b, later states]
        return mass[:, 0]

    def _weights(self, x: Tensor, fixed: Tensor) -> Tensor:
        """p(state) where the state agrees with x_fixed, else 0, ``[b, S]``."""
        weights = self.p.new_ones(len(x), 1)
        for indicator in self._indicators(x, fixed):
            weights = (weights[:, :, None] * indicator[:, None, :]).flatten(1)  # [b, states of the sites so far]
        return weights * self.p.flatten()

    def _evidence(self, mass: Tensor, query: Query, first_row: int) -> Tensor:
        """p(x_C), ``[b]``; raises if a row has a target given an impossible event."""
        impossible = (mass == 0) & query.target.any(-1)
        if impossible.any():
            row = int(impossible.nonzero()[0])
            sites = query.observed[row].nonzero().flatten().tolist()
            raise QueryError(
                "x",
                f"observes an event of probability zero in row {first_row + row} (sites {sites})",
                "No conditional law is defined there: observe a possible event, or condition on fewer sites.",
            )
        return mass


class _TableDecoder:
    """Of each row, the weights of the states that agree with what it knows, in a table over the sites that are left.

    A row's table ``[S_b]`` is row-major over its own sites; behind it stand zeros, up to the largest of the batch.
    """

    def __init__(self, joint: JointTable, x: Tensor, query: Query) -> None:
        self.sizes = torch.tensor(joint.shape, device=x.device)
        self.left = torch.ones(x.shape, dtype=torch.bool, device=x.device)  # [B, N], each row's sites
        self.weights = joint.p.reshape(1, -1).expand(len(x), -1)  # [B, S]
        joint._evidence(joint._mass(x, query.observed), query, 0)  # refuses what is impossible
        sites, given = target_sites(Query._trusted(query.observed, query.target))
        self.append(sites, take_at(x, sites), given=given)

    def append(self, sites: Tensor, values: Tensor, *, given: Tensor | None = None) -> None:
        sites = sites.expand(len(self.weights), -1)
        given = torch.ones_like(sites, dtype=torch.bool) if given is None else given
        for site, value, new in zip(sites.T, values.T, given.T, strict=True):
            code = torch.where(new, value, 0).long()
            size, behind = self._layout(site)
            num_states = torch.where(self.left, self.sizes, 1).prod(1)
            num_left = torch.where(new, num_states // size, num_states)  # [B]
            state = torch.arange(int(num_left.max()) if len(num_left) else 0, device=site.device)  # [S']
            block, within = state // behind[:, None], state % behind[:, None]  # [B, S']
            source = (block * size[:, None] + code[:, None]) * behind[:, None] + within
            source = torch.where(new[:, None], source, state).clamp_max(self.weights.shape[1] - 1)
            self.weights = torch.where(state < num_left[:, None], self.weights.gather(1, source), 0.0)
            self.left = self.left.scatter(1, site[:, None], self.left.gather(1, site[:, None]) & ~new[:, None])

    def marginals(self, sites: Tensor) -> CategoricalMarginals:
        sites = sites.expand(len(self.weights), -1)
        mass = self._masses_by_rank(sites)
        if mass is None:  # rows whose tables differ in shape
            codes = torch.arange(self.weights.shape[1], device=sites.device)
            mass = self.weights.new_zeros(*sites.shape, int(self.sizes.max()))
            for k, site in enumerate(sites.T):
                size, behind = self._layout(site)
                mass[:, k].scatter_add_(1, codes // behind[:, None] % size[:, None], self.weights)
        log_probs = (mass / self.weights.sum(-1)[:, None, None]).log()
        # A site that is known, or a row without mass, has no answer, but a finite one.
        nothing = log_probs.isnan().any(-1, keepdim=True) | (mass == 0).all(-1, keepdim=True)
        return CategoricalMarginals(log_probs.masked_fill(nothing, 0.0).log_softmax(-1))

    def sample(self, sites: Tensor, *, generator: Randomness) -> Tensor:
        """Draws of one site a row, ``[B, 1]``, by the number that draws a state in ``JointTable.sample``."""
        u = rng.uniform((len(self.weights),), generator=generator, dtype=torch.float64)
        cdf = self.weights.cumsum(-1)
        total = cdf[:, -1]
        threshold = torch.minimum(u * total, torch.nextafter(total, torch.zeros_like(total)))
        state = torch.searchsorted(cdf, threshold[:, None], right=True)[:, 0]
        size, behind = self._layout(sites.expand(len(u), -1)[:, 0])
        return (state // behind % size)[:, None]

    def _layout(self, site: Tensor) -> tuple[Tensor, Tensor]:
        """How many values one site a row has, and how many states the row's later sites have together, ``[B]``."""
        later = self.left & (torch.arange(len(self.sizes), device=site.device) > site[:, None])
        return self.sizes[site], torch.where(later, self.sizes, 1).prod(1)

    def _masses_by_rank(self, sites: Tensor) -> Tensor | None:
        """The mass of every value ``[B, S, K]``, zero at known sites, summing out one axis after the other.

        None where the axes of the rows' tables are not of the same sizes.
        """
        count = self.left.sum(1)
        if not len(count) or bool((count != count[0]).any()):
            return None
        shapes = self.sizes.expand_as(self.left)[self.left].view(len(count), -1)  # [B, n]
        if bool((shapes != shapes[0]).any()):
            return None
        rest, masses = self.weights, self.weights.new_zeros(len(count), shapes.shape[1] + 1, int(self.sizes.max()))
        for rank, size in enumerate(shapes[0].tolist()):
            rest = rest.reshape(len(rest), size, -1)
            masses[:, rank, :size] = rest.sum(-1)
            rest = rest.sum(1)
        rank_of = torch.where(self.left, self.left.cumsum(1) - 1, shapes.shape[1])  # known: the empty last one
        return take_at(masses, rank_of.gather(1, sites))


class ConditionalTables:
    """All complete conditionals p(x_i | rest), which need not come from one joint.

    Args:
        tables: for each site i a table ``[V_0, .., V_{N-1}]`` that sums to one over axis i (within 1e-6; then divided
            by its sum).

    Raises:
        FlexgenError: a wrong number of tables, different shapes, negative or non-finite entries, or an axis that does
            not sum to one.

    It answers queries of one target with everything else observed; rows may have different targets. Any other
    query needs a joint, and raises `UnsupportedQueryError`.
    """

    answers = CompleteConditionals()

    def __init__(self, tables: Sequence[Tensor]) -> None:
        given = entries("tables", tables, "Pass one table a site, each with one axis a site.", most=_MOST_AXES)
        checked = [_checked(f"tables[{site}]", table) for site, table in enumerate(given)]
        if not checked or checked[0].ndim != len(checked):
            shape = tuple(checked[0].shape) if checked else ()
            raise FlexgenError(
                "tables",
                f"holds {len(checked)} tables of shape {shape}",
                "Pass one table a site, each with one axis a site.",
            )
        for site, table in enumerate(checked):
            if table.shape != checked[0].shape:
                raise FlexgenError(
                    f"tables[{site}]",
                    f"has shape {tuple(table.shape)}, but tables[0] has {tuple(checked[0].shape)}",
                    "All tables run over all sites, in the same order.",
                )
            sums = table.sum(site)
            if ((sums - 1).abs() > _SUM_TOLERANCE).any():
                place = torch.unravel_index((sums - 1).abs().argmax(), sums.shape)
                others = [other for other in range(table.ndim) if other != site]
                where = ", ".join(f"x{other}={int(code)}" for other, code in zip(others, place, strict=True))
                fix = f"tables[{site}] is p(x_{site} | rest): normalise it over axis {site}."
                summed = [o for o in others if ((table.sum(o) - 1).abs() <= _SUM_TOLERANCE).all()]
                if summed:
                    fix += f" It sums to 1 over axis {summed[0]}: are its axes in the order of the sites?"
                raise FlexgenError(
                    f"tables[{site}]", f"sums to {float(sums[place]):.6g} over axis {site} at {where}, not 1", fix
                )
            checked[site] = table / table.sum(site, keepdim=True)
        self.tables = tuple(checked)
        self.space = Space.categorical(self.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """(V_0, .., V_{N-1})."""
        return tuple(self.tables[0].shape)

    def to(self, device: torch.device | str) -> ConditionalTables:
        device = usable_device("device", device)
        return ConditionalTables([table.to(device) for table in self.tables])

    def log_prob(self, x: Tensor, query: Query) -> Tensor:
        """log p(x_i | rest) in nats, float64 ``[B]``."""
        query = self._supported(x, query, read=True)
        probs, site = self._row_laws(x, query)
        code = torch.where(query.target, x, 0).sum(-1).long()  # the value at the one target
        log_prob = probs.gather(-1, code[:, None])[:, 0].log()
        return torch.where(site >= 0, log_prob, 0.0)

    def sample(self, x: Tensor, query: Query, *, generator: Randomness) -> Tensor:
        """x with each row's target drawn from its complete conditional; one uniform number a row."""
        query = self._supported(x, query, read=False)
        probs, _ = self._row_laws(x, query)
        draw = rng.categorical(probs.log(), generator=generator)  # [B]
        return torch.where(query.target, draw[:, None].to(x.dtype), x)

    def marginals(self, x: Tensor, query: Query, *, sites: Tensor | None = None) -> CategoricalMarginals:
        """p(x_i | rest) at each row's target; uniform at all other sites.

        Args:
            sites: int64 ``[S]`` or ``[B, S]``; the answer is ``[B, S, K]``. None: all, ``[B, N, K]``.
        """
        query = self._supported(x, query, read=False)
        probs, _ = self._row_laws(x, query)  # [B, K]
        codes = torch.arange(max(self.shape), device=x.device)
        uniform = (codes < torch.tensor(self.shape, device=x.device)[:, None]).to(probs.dtype)  # [N, K]
        uniform = uniform / uniform.sum(-1, keepdim=True)
        is_target = query.target if sites is None else take_at(query.target, sites)
        elsewhere = uniform if sites is None else uniform[sites]
        return CategoricalMarginals(torch.where(is_target[:, :, None], probs[:, None, :], elsewhere).log())

    def block_table(self, block: int | Sequence[int]) -> Tensor:
        """p(x_i | rest) for a single site i, ``[V_0, .., V_{N-1}]``.

        Raises:
            UnsupportedQueryError: if the block holds several sites.
        """
        axes = kernels.as_block(block, len(self.shape))
        if len(axes) > 1:
            raise UnsupportedQueryError(
                "block",
                f"holds sites {list(axes)}",
                "Complete conditionals give one site at a time; a JointTable updates blocks.",
            )
        return self.tables[axes[0]]

    def transition_matrix(self, site: int) -> Tensor:
        """The exact Gibbs kernel of updating one site, ``[S, S]``; see `kernels.site_kernel`."""
        return kernels.site_kernel(self, site)

    def kernel(self, scan: Literal["random"] | Iterable[int]) -> Tensor:
        """The exact kernel of one sweep, ``[S, S]``: sites in the given order, or one site chosen at random."""
        return (
            kernels.random_scan_kernel(self)
            if isinstance(scan, str) and scan == "random"
            else kernels.sweep_kernel(self, scan)
        )

    def __repr__(self) -> str:
        return f"ConditionalTables({' x '.join(map(str, self.shape))} states)"

    def _supported(self, x: Tensor, query: Query, *, read: bool) -> Query:
        query = question(x, query)
        num_targets = query.target.sum(-1)
        wrong = (num_targets > 1) | ((num_targets == 1) & query.marginalised.any(-1))
        if wrong.any():
            row = int(wrong.nonzero()[0])
            one = Query(query.target[row], query.observed[row])
            raise UnsupportedQueryError(
                "query",
                f"asks for {one!r} in row {row}, but no joint is known, only the complete conditionals p(x_i | rest)",
                "Ask for one target with all other sites observed, or use a JointTable.",
            )
        self.space.validate(x, where=query.observed | query.target if read else query.observed)
        return query

    def _row_laws(self, x: Tensor, query: Query) -> tuple[Tensor, Tensor]:
        """The law of each row's target, ``[B, K]`` (zero beyond its categories), and the target, -1 where none."""
        has_target = query.target.any(-1)
        site = query.target.long().argmax(-1)  # [B], 0 where there is none
        codes = torch.where(query.observed, x, 0).long()
        strides = torch.tensor(_strides(self.shape), device=x.device)
        sizes = torch.tensor(self.shape, device=x.device)
        values = torch.arange(max(self.shape), device=x.device)
        # A row without a target may leave anything unobserved; it reads some entry, and its answer is not used.
        state = (codes * strides).sum(-1) - torch.gather(codes * strides, 1, site[:, None])[:, 0]
        inside = values < sizes[site][:, None]  # [B, K]
        index = state[:, None] + values.clamp_max(max(self.shape) - 1) * strides[site][:, None] * inside
        flat = torch.stack([table.flatten() for table in self.tables])  # [N, S]
        return flat[site[:, None], index] * inside, torch.where(has_target, site, -1)


def _checked(name: str, table: Tensor) -> Tensor:
    """A float64 copy of a table of non-negative finite entries, with at least one axis."""
    table = as_numbers(name, table)
    if table.ndim == 0 or table.numel() == 0:
        raise FlexgenError(name, f"has shape {tuple(table.shape)}", "Pass one axis a site, each of at least one value.")
    wrong = ~torch.isfinite(table) | (table < 0)
    if wrong.any():
        state = tuple(wrong.nonzero()[0].tolist())
        raise FlexgenError(
            name, f"holds {float(table[state])} at state {state}", "Probabilities are finite and non-negative."
        )
    return table


def _strides(shape: Sequence[int]) -> list[int]:
    """Row-major strides of a table."""
    return [math.prod(shape[site + 1 :]) for site in range(len(shape))]


def _unravel(state: Tensor, shape: Sequence[int]) -> list[Tensor]:
    """The value of each site from state numbers."""
    return [(state // stride) % size for stride, size in zip(_strides(shape), shape, strict=True)]


def _chunks(num_rows: int, num_states: int) -> Iterator[slice]:
    size = max(1, _CHUNK_ENTRIES // num_states)
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))
