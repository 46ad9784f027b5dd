"""A video backbone: a network over windows, the noise process it was trained for, and the scale of its pixels."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from flexgen import saving
from flexgen.checks import folder_path
from flexgen.data.examples import or_example
from flexgen.errors import CheckpointError, ConfigError
from flexgen.networks.frame_unet import FrameUNet
from flexgen.video.process import NoiseProcess, PixelScale

__all__ = ["BACKBONE_FILES", "NETWORK_KEYS", "VideoBackbone", "earlier_backbone_files"]

NETWORK_KEYS = tuple(name for name in inspect.signature(FrameUNet).parameters if name != "self")

_FILE = "backbone.json"
BACKBONE_FILES = (_FILE, "network/config.json", "network/diffusion_pytorch_model.safetensors")
_FORMAT = 2  # 1 had no manifest


class VideoBackbone(nn.Module):
    """What a checkpoint of a video model holds.

    Args:
        network: predicts along the process.
        process: see `NoiseProcess`.
        scale: of the training data's pixels.
        window: K, the most frames that the network was trained to see at once.
        trained_on: words on the data, the law and the length of training, for the reader of a checkpoint.
    """

    def __init__(
        self,
        network: FrameUNet,
        process: NoiseProcess,
        scale: PixelScale,
        *,
        window: int,
        trained_on: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if window < 2:
            raise ConfigError("window", f"is {window}", "A window holds at least a target and an observed frame.")
        self.network = network
        self.process, self.scale, self.window = process, scale, window
        self.trained_on = dict(trained_on or {})

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of a frame."""
        size = int(self.network.config["sample_size"])
        return size, size, int(self.network.config["in_channels"])

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def fingerprint(self) -> str:
        """Of the weights and of all that tells what they mean; a store of frames remembers who made them."""
        config = {name: value for name, value in self.network.config.items() if not name.startswith("_")}
        # As JSON, in which the tuples of a fresh network and the lists of a loaded one are the same.
        digest = hashlib.sha256(json.dumps([self._meaning(), config], sort_keys=True).encode())
        for name, weight in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def save_pretrained(self, folder: str | Path, *, half: bool = False) -> None:
        """Writes the network as diffusers does (safetensors and its config), and backbone.json beside it.

        All files are replaced at once, with their checksums beside them; see ``flexgen.saving``.

        Args:
            folder: made if it does not exist.
            half: weights in float16, half the size; they are read back as float32.

        Raises:
            CheckpointError: the folder cannot be written to, or holds files of these names that are not ours.
        """
        network = self.network
        if half:
            network = copy.deepcopy(network)
            for weight in network.parameters():
                weight.data = weight.data.half()
        content = {"format": _FORMAT, **self._meaning(), "trained_on": self.trained_on}

        def write(new: Path) -> None:
            network.save_pretrained(new / "network", safe_serialization=True)
            _forget_origin(new / "network" / "config.json")
            (new / _FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

        saving.update_folder(folder, write, earlier=earlier_backbone_files)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> VideoBackbone:
        """Reads what `save_pretrained` wrote, in float32 and eval mode.

        Args:
            folder: or ``"mazes32"``, the example that comes with the package, where no folder has this name.

        Raises:
            CheckpointError: no such folder, a file missing or damaged, another format; names the file.
        """
        folder = or_example(folder_path("folder", folder))
        fix = "Name a folder that VideoBackbone.save_pretrained wrote, whole and as it was."
        return saving.read_folder(folder, BACKBONE_FILES, cls._read, fix=fix)

    @classmethod
    def _read(cls, files: Mapping[str, Path], are_checked: bool) -> VideoBackbone:
        file = files[_FILE]
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:  # of the JSON, or of its bytes
            raise CheckpointError("folder", f"{file} is no JSON ({error})", "Copy the folder anew.") from error
        version = content.get("format") if isinstance(content, dict) else None
        if version not in (1, _FORMAT):
            problem = f"{file.parent} has format {version}"
            raise CheckpointError("folder", problem, f"This version reads format {_FORMAT}.")
        if version != 1 and not are_checked:
            problem = f"{file.parent} lacks its {saving.MANIFEST}"
            raise CheckpointError("folder", problem, "Copy the whole folder.")
        try:
            network = _read_network(*(files[name] for name in BACKBONE_FILES[1:]))
            process, scale = NoiseProcess(**content["process"]), PixelScale(**content["scale"])
            window = int(content["window"])
        except CheckpointError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            problem = f"{file.parent} cannot be read: {reason}"
            raise CheckpointError("folder", problem, "Copy the folder anew.") from error
        return cls(network, process, scale, window=window, trained_on=content.get("trained_on")).eval()

    def _meaning(self) -> dict[str, Any]:
        return {"process": self.process.to_dict(), "scale": asdict(self.scale), "window": self.window}


def earlier_backbone_files(folder: Path) -> list[str]:
    """The files of a backbone saved before there were manifests, known by what its two descriptions hold."""
    try:
        content = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        network = json.loads((folder / "network" / "config.json").read_text(encoding="utf-8"))
        is_ours = content["format"] == 1 and {"process", "scale", "window", "trained_on"} <= content.keys()
        is_ours = is_ours and network["_class_name"] == FrameUNet.__name__
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return list(BACKBONE_FILES) if is_ours else []


def _read_network(config_file: Path, weights_file: Path) -> FrameUNet:
    """From these files alone, wherever each is: diffusers would ask the Hub for a missing one, and unpickle others."""
    config = json.loads(config_file.read_text(encoding="utf-8"))
    if config.get("_class_name") != FrameUNet.__name__:
        problem = f"{config_file} describes a {config.get('_class_name')}"
        raise CheckpointError("folder", problem, "Name a folder with a FrameUNet.")
    unknown = [name for name in config if name not in NETWORK_KEYS and not name.startswith("_")]
    if unknown:  # diffusers would leave it out, and build another network
        problem = f"{config_file} has a key {unknown[0]!r}, which FrameUNet has not"
        fix = f"Its keys are {', '.join(NETWORK_KEYS)}. Use the version of flexgen that wrote it."
        raise CheckpointError("folder", problem, fix)
    network: FrameUNet = FrameUNet.from_config({name: config[name] for name in NETWORK_KEYS if name in config})
    weights = load_file(weights_file)
    wrong = sorted(weights.keys() ^ network.state_dict().keys())
    if wrong:
        problem = f"{weights_file} lacks weights, or has others, such as {wrong[0]}"
        raise CheckpointError("folder", problem, "Copy it anew.")
    network.load_state_dict(weights)  # half precision becomes single
    return network.to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-arg]


def _forget_origin(path: Path) -> None:
    """Takes out of a network's config where it was once read from, which diffusers notes: a folder of one machine."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
