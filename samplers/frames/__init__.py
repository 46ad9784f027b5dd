"""Plans of long videos: which frames are drawn next, given which.

    plan = frames.hierarchical(num_frames=300, observed=range(36), window=20, levels=2)
    video = run(conditional, x, plan, generator=g)

Plans are values (`Plan`): checked, printable, serialisable, with windows, waves and cost known before they run. FDM's
are here (`autoregressive`, `long_range`, `hierarchical`, and those that look: `adaptive_autoregressive`,
`adaptive_hierarchical`), a keyframe tree whose levels run in parallel (`tree`), Gibbs refinement of seams (`refine`),
and patterns of given frames (`interpolation`, `keyframes`, `extension`, `loop`; `plan_for` chooses a plan). `by_name`
knows the plans by their names.
"""

from samplers.frames.adaptive import AdaptivePlan, Choice, adaptive_autoregressive, adaptive_hierarchical
from samplers.frames.distances import Distance, pixel_distance
from samplers.frames.fdm import autoregressive, hierarchical, long_range
from samplers.frames.named import by_name
from samplers.frames.patterns import Pattern, continuation, extension, interpolation, keyframes, loop, plan_for
from samplers.frames.plan import Plan, Window
from samplers.frames.refine import refine
from samplers.frames.tree import tree

__all__ = [
    "AdaptivePlan",
    "Choice",
    "Distance",
    "Pattern",
    "Plan",
    "Window",
    "adaptive_autoregressive",
    "adaptive_hierarchical",
    "autoregressive",
    "by_name",
    "continuation",
    "extension",
    "hierarchical",
    "interpolation",
    "keyframes",
    "long_range",
    "loop",
    "pixel_distance",
    "plan_for",
    "refine",
    "tree",
]
