"""A fitted table on disk: its structure as JSON, its numbers in safetensors beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from flexgen import saving
from flexgen.data.schema import TableSchema
from flexgen.errors import CheckpointError
from flexgen.space import Space
from flexgen.tables.columns import Column, ColumnMaps, FeatureLayout
from flexgen.tables.conditional import TableConditional
from flexgen.tables.fit import FitReport
from flexgen.tables.members import ClassMixture, DenseGaussian, NormalMixture
from flexgen.tables.network import MaskedTableNetwork

__all__ = [
    "TABLE_FILES",
    "conditional_from_config",
    "conditional_to_config",
    "earlier_table_files",
    "read_table_model",
    "write_table_model",
]

_FORMAT = 2  # 1 had a checksum in the config in place of a manifest
TABLE_FILES = _CONFIG, _TENSORS = "config.json", "model.safetensors"


def write_table_model(
    folder: str | Path, schema: TableSchema, conditional: TableConditional, report: FitReport
) -> None:
    """Writes ``config.json`` and ``model.safetensors``, both or neither, and their checksums (``flexgen.saving``).

    Raises:
        CheckpointError: the folder cannot be written to, or holds files of these names that are not ours.
    """
    config = {
        "flexgen_format": _FORMAT,
        "schema": schema.to_dict(),
        "conditional": conditional_to_config(conditional),
        "report": report.to_dict(),
    }
    tensors = {name: t.detach().cpu().contiguous() for name, t in conditional.state_dict().items()}

    def write(new: Path) -> None:
        save_file(tensors, new / _TENSORS)
        (new / _CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")

    saving.update_folder(folder, write, earlier=earlier_table_files)


def read_table_model(folder: str | Path) -> tuple[TableSchema, TableConditional, FitReport]:
    """Reads what `write_table_model` wrote; nothing is unpickled or imported by name.

    Raises:
        CheckpointError: files absent, damaged, of another format, or of different models; names the file.
    """
    return saving.read_folder(folder, TABLE_FILES, _read, fix="Pass a folder that save_pretrained wrote, as it was.")


def earlier_table_files(folder: Path) -> list[str]:
    """The files of a model saved before there were manifests, known by the checksum in its config."""
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        is_ours = config["flexgen_format"] == 1 and {"schema", "conditional", "model_sha256"} <= config.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return list(TABLE_FILES) if is_ours else []


def _read(files: Mapping[str, Path], are_checked: bool) -> tuple[TableSchema, TableConditional, FitReport]:
    config_file, tensors_file = (files[name] for name in TABLE_FILES)
    folder, again = config_file.parent, "Save the model again."
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        found = config["flexgen_format"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError("folder", f"{config_file} is damaged ({error})", again) from error
    if found not in (1, _FORMAT):
        raise CheckpointError("folder", f"{str(folder)!r} has format {found}", f"This version reads format {_FORMAT}.")
    if found != 1 and not are_checked:
        raise CheckpointError("folder", f"{str(folder)!r} lacks its {saving.MANIFEST}", "Copy the whole folder.")
    try:
        schema = TableSchema.from_dict(config["schema"])
        conditional = conditional_from_config(config["conditional"], schema.space)
        if found == 1 and config["model_sha256"] != saving.sha256(tensors_file):
            raise ValueError(f"{_TENSORS} is not the file that {_CONFIG} was saved with")
        conditional.load_state_dict(load_file(tensors_file))
        report = FitReport(**config["report"])
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            "folder", f"{str(folder)!r} holds files that do not fit together ({reason})", again
        ) from error
    return schema, conditional, report


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
