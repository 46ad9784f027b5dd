"""A table conditional's structure as JSON; its numbers go into safetensors beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from flexgen.errors import CheckpointError
from flexgen.space import Space
from flexgen.tables.columns import Column
from flexgen.tables.conditional import TableConditional
from flexgen.tables.conditioning import NormalMixture
from flexgen.tables.features import FeatureLayout
from flexgen.tables.maps import ColumnMaps
from flexgen.tables.members import ClassMixture, DenseGaussian
from flexgen.tables.network import MaskedTableNetwork

__all__ = ["conditional_from_config", "conditional_to_config"]


def conditional_to_config(conditional: TableConditional) -> dict[str, Any]:
    """JSON-serialisable."""
    return {
        "space": conditional.space.to_dict(),
        "columns": [column.to_dict() for column in conditional.maps.columns],
        "members": [_member_to_config(member) for member in conditional.members],
    }


def conditional_from_config(config: Mapping[str, Any], space: Space) -> TableConditional:
    """A conditional of that structure, its numbers yet to be loaded.

    Raises:
        CheckpointError: the structure is of another space.
    """
    stored = Space.from_dict(config["space"])
    if stored != space:
        raise CheckpointError("config", f"holds a conditional over {stored}, not {space}", "Use the model's own files.")
    maps = ColumnMaps([Column.from_dict(column) for column in config["columns"]])
    layout = maps.layout()
    members = [_member_from_config(member, layout) for member in config["members"]]
    return TableConditional(space, maps, members, torch.zeros(len(members), space.num_sites))


def _member_to_config(member: nn.Module) -> dict[str, Any]:
    if isinstance(member, ClassMixture):
        return {"kind": "classes", "num_classes": len(member.law.weights)}
    if isinstance(member, MaskedTableNetwork):
        trunk = member.trunk
        sizes = {"num_components": member.num_components, "width": trunk.embed.out_features, "depth": len(trunk.blocks)}
        return {"kind": "network", **sizes}
    assert isinstance(member, DenseGaussian)
    return {"kind": "gaussian"}


def _member_from_config(config: Mapping[str, Any], layout: FeatureLayout) -> nn.Module:
    sizes = {name: value for name, value in config.items() if name != "kind"}
    if config["kind"] == "classes":
        num_codes = layout.num_features - layout.num_numeric
        law = NormalMixture.empty(sizes["num_classes"], layout.num_numeric)
        return ClassMixture(layout, law, torch.zeros(sizes["num_classes"], num_codes, dtype=torch.float64))
    gaussian = DenseGaussian(layout, NormalMixture.empty(1, layout.num_features))
    return MaskedTableNetwork(gaussian, **sizes) if config["kind"] == "network" else gaussian
