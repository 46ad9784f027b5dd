"""How a table model is fitted, as one value. The defaults are the one recipe for all tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flexgen.checks import is_number, whole_number
from flexgen.errors import ConfigError

__all__ = ["TableSettings"]


_MOST_NETWORKS = 20  # each holds out a twentieth of the rows

# Whole numbers, and the least of each.
_LEAST = {
    "num_networks": 0,
    "num_steps": 1,
    "small_steps": 1,
    "batch_size": 1,
    "restarts": 1,
    "width": 1,
    "small_width": 1,
    "depth": 0,
    "small_depth": 0,
    "num_components": 1,
    "small_rows": 0,
    "patience": 1,
}

# Other numbers: what must hold of them, in code and in words.
_POSITIVE = (lambda value: value > 0, "a number above 0")
_NOT_NEGATIVE = (lambda value: value >= 0, "a number, 0 or more")
_SHARE = (lambda value: 0 <= value < 1, "a number in [0, 1)")
_NUMBERS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("lr", "muon_lr", "small_lr", "small_muon_lr"), _POSITIVE),
    **dict.fromkeys(("weight_decay", "muon_weight_decay"), _NOT_NEGATIVE),
    **dict.fromkeys(("dropout", "small_dropout"), _SHARE),
    **dict.fromkeys(("grad_clip", "max_seconds"), (_POSITIVE[0], "a number above 0, or None")),
    "ema_decay": (_SHARE[0], "a number in [0, 1), or None"),
}


@dataclass(frozen=True)
class TableSettings:
    """Settings of `TableModel.fit`.

    Args:
        num_networks: masked networks of a large table, each with its own part of the rows held out; a small table
            has one for each fold. 0: exact members only.
        num_steps: updates of a network, fewer if `patience` runs out.
        batch_size: rows an update.
        optimizer, lr, muon_lr, weight_decay, muon_weight_decay, grad_clip, ema_decay: see `TrainingSettings`.
        width, depth, dropout, num_components: of the network; see `MaskedTableNetwork`.
        small_steps, small_lr, small_muon_lr, small_width, small_depth, small_dropout: the same for tables of up to
            `small_rows` rows.
        small_rows: tables up to this many rows are cross-fitted in five parts, and get class mixtures as members.
        ridges: candidates for the Gaussian's shrinkage.
        classes: candidates for the number of classes of the mixtures.
        restarts: class mixtures from different starts, averaged.
        patience: validations without progress before a network stops.
        amp: "bf16" trains with matrix products in bfloat16; "auto" does where the hardware has them.
        max_seconds: wall time for each network, None for no limit.
    """

    num_networks: int = 2
    num_steps: int = 6000
    batch_size: int = 512
    optimizer: Literal["adamw", "muon"] = "muon"
    lr: float = 2e-3
    muon_lr: float = 4e-3
    weight_decay: float = 0.01
    muon_weight_decay: float = 0.1
    grad_clip: float | None = 1.0
    ema_decay: float | None = 0.998
    width: int = 256
    depth: int = 4
    num_components: int = 10
    dropout: float = 0.1
    small_steps: int = 300
    small_lr: float = 3e-4
    small_muon_lr: float = 5e-4
    small_width: int = 128
    small_depth: int = 2
    small_dropout: float = 0.2
    small_rows: int = 2000
    ridges: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    classes: tuple[int, ...] = (2, 4, 8, 16, 32)
    restarts: int = 5
    patience: int | None = 8
    amp: Literal["auto", "bf16", "fp16"] | None = "auto"
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if name != "patience" or self.patience is not None:
                whole_number(name, getattr(self, name), least, ConfigError)
        if self.num_networks > _MOST_NETWORKS:
            raise ConfigError("num_networks", f"is {self.num_networks}", f"Pass at most {_MOST_NETWORKS}.")
        for name, (holds, expected) in _NUMBERS.items():
            value = getattr(self, name)
            if not (value is None and expected.endswith("None")) and not (is_number(value) and holds(value)):
                raise ConfigError(name, f"is {value!r}", f"Pass {expected}.")
        if self.optimizer not in ("adamw", "muon"):
            raise ConfigError("optimizer", f"is {self.optimizer!r}", "Choose 'adamw' or 'muon'.")
        if self.amp not in (None, "auto", "bf16", "fp16"):
            raise ConfigError("amp", f"is {self.amp!r}", "Choose 'auto', 'bf16', 'fp16' or None.")
        if not _are(self.ridges, lambda ridge: is_number(ridge) and 0 < ridge < math.inf) or not self.ridges:
            raise ConfigError("ridges", f"is {self.ridges!r}", "Pass positive numbers, such as (0.01, 0.1).")
        if not _are(self.classes, lambda k: isinstance(k, int) and k >= 1):
            raise ConfigError("classes", f"is {self.classes!r}", "Pass positive whole numbers, such as (2, 4).")


def _are(values: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str) and all(map(holds, values))
