"""What a run of chains returns: draws, diagnostics, and a state from which the run can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from flexgen import rng, saving
from flexgen.checks import malformed, mapping, real_tensor, whole_number
from flexgen.errors import CheckpointError, FlexgenError
from samplers import chains as diagnostics

__all__ = ["ChainResult", "ChainState"]

_MEMORY = "memory."


def _require_streams(argument: str, what: str, found: str | None) -> None:
    if found == rng.GENERATOR:
        return
    made = f"of {found}" if found else "of an earlier version"
    raise CheckpointError(
        argument,
        f"{what} was saved with random streams {made}; this version draws by {rng.GENERATOR}, so that the run cannot "
        "go on with the same draws",
        "Start a new run where its chains stand: sampler.run(x=safetensors.torch.load_file(path)['x'], ..); of "
        "parallel tempering x[::R], the first of each R replicas.",
    )


@dataclass(frozen=True, eq=False)
class ChainState:
    """Everything a run needs to go on bit for bit.

    Args:
        x: ``[B, N, *site]``, the chains' states (replicas of a chain stand in rows of their own).
        clamped: bool ``[N]`` or ``[B, N]``.
        chain_ids: int64 ``[B]``, the chains' names.
        seed: of the chains' streams.
        num_sweeps: sweeps made so far, which is the streams' place.
        memory: what a kernel of one's own remembers from step to step, one entry for each row of `x`.
    """

    x: Tensor
    clamped: Tensor
    chain_ids: Tensor
    seed: int
    num_sweeps: int
    memory: Mapping[str, Tensor] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        return {
            "x": self.x,
            "clamped": self.clamped,
            "chain_ids": self.chain_ids,
            "seed": self.seed,
            "num_sweeps": self.num_sweeps,
            "streams": rng.GENERATOR,
            **{_MEMORY + name: value for name, value in self.memory.items()},
        }

    @classmethod
    def from_state_dict(cls, data: Mapping[str, Any]) -> ChainState:
        """The state that `state_dict` described.

        Raises:
            CheckpointError: its random streams are those of an earlier flexgen, with which it cannot go on bit for bit.
            FlexgenError: it is no such state.
        """
        fix = "Pass what state_dict() gave."
        mapping("data", data, fix)
        _require_streams("data", "the state", data.get("streams"))
        with malformed("data", fix, FlexgenError):
            x, clamped, chain_ids = (
                real_tensor(name, data[name], "as state_dict() gave it") for name in ("x", "clamped", "chain_ids")
            )
            seed, num_sweeps = (whole_number(name, data[name], -(1 << 127)) for name in ("seed", "num_sweeps"))
            of_kernel = {name: value for name, value in data.items() if name.startswith(_MEMORY)}
            memory = {
                name.removeprefix(_MEMORY): real_tensor(name, value, "as state_dict() gave it")
                for name, value in of_kernel.items()
            }
            return cls(x, clamped, chain_ids, seed, num_sweeps, memory)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, what is no tensor in its header as JSON; in place only once it is whole.

        Raises:
            CheckpointError: the file cannot be written; what stood there is as it was.
        """
        from safetensors.torch import save_file

        tensors = {name: value.contiguous() for name, value in self.state_dict().items() if isinstance(value, Tensor)}
        header = json.dumps({"seed": self.seed, "num_sweeps": self.num_sweeps, "streams": rng.GENERATOR})
        with saving.writing("path", path), saving.replacing(path) as partial:
            save_file(tensors, partial, metadata={"flexgen_chain_state": header})

    @classmethod
    def load(cls, path: str | Path) -> ChainState:
        """Reads what `save` wrote.

        Raises:
            CheckpointError: there is no such file, it holds something else, or its random streams are those of an
                earlier flexgen, with which the run cannot go on bit for bit.
        """
        from safetensors import SafetensorError, safe_open

        fix = "Pass a file that state.save() wrote."
        try:
            with safe_open(str(path), framework="pt") as file:
                header = (file.metadata() or {}).get("flexgen_chain_state")
                if header is None:
                    raise CheckpointError("path", f"{path} holds no chain state", fix)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError("path", f"{path} cannot be read ({error})", fix) from error
        values = json.loads(header)
        _require_streams("path", str(path), values.get("streams"))
        return cls.from_state_dict({**tensors, **values})

    def __repr__(self) -> str:
        return f"ChainState({len(self.chain_ids)} chains after {self.num_sweeps} sweeps, seed {self.seed})"


@dataclass(frozen=True, eq=False)
class ChainResult:
    """Draws of many chains.

    Attributes:
        state: pass it to ``run(state=...)`` to go on.
        names: of the sites.
        statistics: what the sampler counted, warm-up included: acceptance and swap rates.
        interrupted: whether a KeyboardInterrupt ended the run early.
    """

    _draws: Tensor | None
    state: ChainState
    names: tuple[str, ...]
    statistics: dict[str, Tensor] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def draws(self) -> Tensor:
        """``[S, B, N, *site]``: draw, chain, site."""
        if self._draws is None:
            raise FlexgenError("draws", "were not stored", "Run with store=True, or use an observer.")
        return self._draws

    def rhat(self) -> Tensor:
        """Split, rank-normalised, folded R-hat of every site, ``[N, *site]``; below 1.01 is well."""
        return diagnostics.rhat(self.draws)

    def ess(self, kind: Literal["bulk", "tail"] = "bulk") -> Tensor:
        """Effective sample size of every site over all chains, ``[N, *site]``."""
        return diagnostics.ess(self.draws, kind=kind)

    def summary(self) -> diagnostics.Summary:
        """Mean, standard deviation, Monte Carlo error of the mean, R-hat and effective sizes of scalar sites."""
        return diagnostics.summary(self.draws, self.names)

    def to_arviz(self) -> Any:
        """An ``arviz.InferenceData`` with a variable for every site (needs the extra ``arviz``)."""
        return diagnostics.to_arviz(self.draws, self.names)

    def __repr__(self) -> str:
        stored = "draws not stored" if self._draws is None else f"draws {tuple(self._draws.shape)}"
        return f"ChainResult({stored}, {self.state}{', interrupted' if self.interrupted else ''})"
