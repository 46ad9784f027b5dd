"""The folder of a generated video: the store of its frames, and beside it the plan, the mp4 and a contact sheet.

The files beside the frames are saved as all files are (``flexgen.saving``): whole or not at all, and only what is ours
is ever replaced.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from flexgen import saving
from flexgen.checks import renamed
from flexgen.data.video_files import VideoWriter, contact_sheet
from flexgen.errors import CheckpointError
from flexgen.video.storage import FRAMES, SIDECAR, FrameStore
from samplers.frames import AdaptivePlan, Plan, Window

__all__ = [
    "PLAN_FILE",
    "SHEET_FILE",
    "VIDEO_FILE",
    "errors_of",
    "read_plan",
    "require_ours",
    "start_anew",
    "walked_plan",
    "write_pictures",
    "write_plan",
]

Frames = npt.NDArray[np.uint8]

FOLDER_OF_FRAMES = "frames"
PLAN_FILE, VIDEO_FILE, SHEET_FILE = "plan.json", "video.mp4", "contact_sheet.png"
_FILES = (PLAN_FILE, VIDEO_FILE, SHEET_FILE)
_SHEET_FRAMES = 100
_LEAST_SIDE = 256  # of an mp4, in pixels


def require_ours(folder: Path) -> None:
    """Nothing foreign stands where a video's files go, and no link.

    Raises:
        CheckpointError: names what stands there.
    """
    saving.settle(folder, argument="output_dir")
    links = [f"{FOLDER_OF_FRAMES}/{name}" for name in (FRAMES, SIDECAR)]
    saving.refuse_links(folder, links, "output_dir")
    saving.require_ours(folder, _FILES, earlier=_earlier_files, argument="output_dir")


def start_anew(folder: Path, open_store: Callable[..., FrameStore]) -> None:
    """Replaces the store of an earlier call by an empty one, and then removes the files beside it."""
    open_store(anew=True)
    with saving.writing("output_dir", folder):
        saving.remove_files(folder, _FILES, earlier=_earlier_files)


def write_pictures(folder: Path, frames: Frames, observed: Iterable[int], *, fps: int | None) -> None:
    """The contact sheet and, with frames a second, the mp4.

    Small frames are enlarged, pixel by pixel: players show them, and the codec's halved colours cost nothing.
    """

    def write(new: Path) -> None:
        every = max(1, -(-len(frames) // _SHEET_FRAMES))
        contact_sheet(frames, new / SHEET_FILE, every=every, observed=observed)
        if fps is not None:
            zoom = max(1, _LEAST_SIDE // min(frames.shape[1:3]))
            with VideoWriter(new / VIDEO_FILE, fps=fps) as writer:
                for frame in frames:
                    writer.write(np.asarray(frame).repeat(zoom, 0).repeat(zoom, 1))

    _update(folder, write)


def walked_plan(plan: Plan | AdaptivePlan, store: FrameStore) -> Plan:
    """The plan; of an adaptive one, what it came to."""
    if isinstance(plan, Plan):
        return plan
    return plan.chosen([Window(**window) for window in store.notes["windows"]])


def write_plan(folder: Path, plan: Plan | AdaptivePlan, store: FrameStore, *, replace: bool) -> None:
    """A plan; an adaptive one as such, and once it is walked, the windows that it chose as well."""
    if (folder / PLAN_FILE).exists() and not replace:
        return
    if isinstance(plan, Plan):
        text = plan.to_json()
    else:
        is_walked = len(store.notes.get("windows", ())) == plan.num_evaluations
        text = json.dumps({**(walked_plan(plan, store).to_dict() if is_walked else {}), "adaptive": plan.to_dict()})
    _update(folder, lambda new: (new / PLAN_FILE).write_text(text, encoding="utf-8"))


def read_plan(folder: Path) -> Plan | AdaptivePlan:
    """What `write_plan` wrote."""
    path = folder / PLAN_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if "adaptive" not in data:
            return Plan.from_dict(data)
    except (OSError, ValueError, TypeError) as error:  # a PlanError among them
        problem = f"{str(path)!r} cannot be read ({error})"
        raise CheckpointError("output_dir", problem, "Repeat the call that made the video.") from error

    def is_finished(_frames: Tensor, _others: Tensor) -> Tensor:  # a video whose windows are chosen measures nothing
        raise NotImplementedError

    is_finished.__qualname__ = data["adaptive"]["distance"]  # by which the store knows the plan again
    return AdaptivePlan.from_dict(data["adaptive"], is_finished)


@contextlib.contextmanager
def errors_of(folder: Path) -> Iterator[None]:
    """What the store of the frames says of its folder, told of the argument ``output_dir``."""
    try:
        with renamed(store="output_dir"):
            yield
    except CheckpointError as error:
        if error.argument != "folder":
            raise
        anew = (folder / FOLDER_OF_FRAMES / SIDECAR).is_file()
        fix = f"{error.fix} overwrite=True makes the video anew." if anew else error.fix
        raise CheckpointError("output_dir", error.problem, fix) from error


def _update(folder: Path, write: Callable[[Path], object]) -> None:
    with renamed(path="output_dir"):
        saving.update_folder(folder, write, earlier=_earlier_files, argument="output_dir")


def _earlier_files(folder: Path) -> list[str]:
    """What a call left before there were manifests: a plan of the store's frames; the pictures of a finished store."""
    try:
        sidecar = json.loads((folder / FOLDER_OF_FRAMES / SIDECAR).read_text(encoding="utf-8"))
        plan = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
        if sidecar["format"] != 1 or not ("adaptive" in plan or plan["num_frames"] == sidecar["shape"][0]):
            return []
        return [PLAN_FILE] if "-" in sidecar["checksums"] else list(_FILES)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return []
