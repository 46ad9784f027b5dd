"""Neural networks, as plain modules that know nothing of laws, training or sampling."""

from __future__ import annotations

from flexgen.networks.residual_mlp import ResidualMLP

__all__ = ["ResidualMLP"]
