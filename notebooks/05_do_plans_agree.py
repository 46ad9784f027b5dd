# %% [markdown]
# # Do plans agree?
#
# A video diffusion model draws some frames given others, and a *plan* says which come first: all at once, one after the
# other, keyframes and then what lies between. If the model's conditionals p(frames | other frames) had a joint, every
# plan would draw from the same distribution. Nobody can compute log p here, so there is no order gap to measure. But
# there are draws: this notebook gives one network the same held-out frames, lets three plans continue them, and asks
# whether the results have one distribution.

# %%
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pictures
import torch
from IPython.display import Markdown

from flexgen import rng
from flexgen.compatibility import score_asymmetry
from flexgen.data.video_files import read_frames
from flexgen.metrics.video import MazeFeatures
from flexgen.query import Query
from flexgen.video import VideoBackbone, WindowSampler
from samplers.frames import Plan, Window

torch.set_num_threads(1)  # of a network this small, faster than two
QUICK = bool(os.environ.get("FLEXGEN_NOTEBOOK_QUICK"))  # smaller numbers, for tests

# %% [markdown]
# ## One network, three plans
#
# The network of `checkpoints/mazes32` (4 million parameters) continues walks through mazes; it sees twelve frames of 32
# x 32 pixels. Four frames are given and eight are new, so that **every window sees everything that is there**. Longer
# videos need plans that forget frames, and would differ for that reason too; here only the network is to blame.

# %%
GIVEN, NEW = tuple(range(4)), tuple(range(4, 12))


def plan(name, *targets):
    """Draws the targets in this order, each given all frames that are there by then."""
    windows, there = [], set(GIVEN)
    for target in targets:
        windows.append(Window(target, there))
        there |= set(target)
    return Plan(12, GIVEN, 12, tuple(windows), name)


plans = [
    plan("all at once", NEW),
    plan("one by one", *((frame,) for frame in NEW)),
    plan("keyframes first", (7, 11), (5, 9), (4, 6, 8, 10)),
]
for each in plans:
    print(f"{each.name:16}", " | ".join(" ".join(map(str, window.target)) for window in each.windows))

# %%
checkpoint = Path("../checkpoints/mazes32")
backbone = VideoBackbone.from_pretrained(checkpoint)
NUM_STARTS, NUM_STEPS = (8, 1) if QUICK else (16, 10)

clips = [np.stack(list(read_frames(checkpoint / f"{name}.mp4", size=32))) for name in ("held_out", "held_out_2")]
starts = [(clip, int(at)) for clip in clips for at in np.linspace(0, len(clip) - 12, NUM_STARTS // 2)]
real = torch.from_numpy(np.stack([clip[at : at + 12] for clip, at in starts]))  # [starts, 12, 32, 32, 3]
sampler = WindowSampler(backbone, num_inference_steps=NUM_STEPS)


def draw(plan, seed):
    """The videos that a plan makes of every start."""
    x = real.clone()
    x[:, list(NEW)] = 0
    source = rng.Streams(seed, len(x))
    for window in plan.windows:
        index = torch.tensor(window.frame_index)
        x[:, index] = sampler.sample_window(x[:, index], window.query(), frame_index=index, generator=source)
    return x


videos = {each.name: draw(each, seed=number) for number, each in enumerate(plans, start=11)}
again = draw(plans[0], seed=10)  # the same plan, other random numbers

# %% [markdown]
# ## Features
#
# Pixels differ between any two draws. To compare distributions we need statistics that mean something: `MazeFeatures`
# is a small network, trained on poses, that reads from five neighbouring frames how fast the camera walks and turns,
# how far the wall ahead is, and whether the picture looks spoilt. Two more need no network: how much pixels change from
# frame to frame, and how sharp frames are.

# %%
features = MazeFeatures.pretrained()


def statistics(video):
    """One row a start; means over the new frames."""
    reading, pixels = features.read(video), video.float()
    change = (pixels[:, 1:] - pixels[:, :-1]).abs().mean((2, 3, 4))[:, 3:]
    edges = (pixels[:, 4:, :, 1:] - pixels[:, 4:, :, :-1]).abs().mean((1, 2, 3, 4))
    looks_spoilt = 1 - reading.flaw.softmax(-1)[..., 0]
    return pd.DataFrame(
        {
            "speed, m a frame": reading.speed.mean(1),
            "|turn|, degrees a frame": reading.turn.rad2deg().abs().mean(1),
            "wall ahead, m": reading.clear.mean(1),
            "looks spoilt, share": looks_spoilt.mean(1),
            "change, grey levels": change.mean(1),
            "sharpness, grey levels": edges,
        }
    )


measured = {name: statistics(video) for name, video in ({"real": real} | videos).items()}
measured["all at once, again"] = statistics(again)
table = pd.DataFrame({name: frame.mean() for name, frame in measured.items()}).T
table.round(3)

# %% [markdown]
# One start as an example: the one whose continuations differ most in how spoilt they look. Others differ less.

# %%
looks = np.stack([measured[name]["looks spoilt, share"] for name in videos])
start = int(np.ptp(looks, axis=0).argmax())
pictures.films({name: video[start, 2:] for name, video in ({"real": real} | videos).items()}, given=2)

# %% [markdown]
# ## The test
#
# Each plan continued the *same* starts, and *all at once* did so twice. If plans agree, the three results of a start
# (two of *all at once*, one of another plan) are draws of one distribution, and any of them may be called the other
# plan's. So call one of the three so at random, in every start, many times, and see how often the mean difference is as
# large as it is. That is an exact test whatever the starts are; p-values are Bonferroni's over the six statistics. The
# control compares the two results of *all at once*; even of equal distributions, one test in twenty has a p below 0.05.


# %%
def relabelled(num_draws, num_starts, num_times=4000):
    """Weights [times + 1, draws, starts]: 1 for the draw that is called the other plan's, the rest share -1."""
    chosen = np.random.default_rng(0).integers(num_draws, size=(num_times + 1, num_starts))
    chosen[0] = num_draws - 1  # what it is
    return np.where(chosen[:, None] == np.arange(num_draws)[:, None], 1.0, -1 / (num_draws - 1))


def mean_test(*draws):
    """Difference of the last to the others in standard errors, and its p-value, for every statistic."""
    values = np.stack([frame.to_numpy(float) for frame in draws])  # [draws, starts, statistics]
    each = np.einsum("tds,dsk->tsk", relabelled(*values.shape[:2]), values)
    mean = np.abs(each.mean(1))
    p = (mean >= mean[0] - 1e-12).mean(0) * values.shape[2]
    z = each[0].mean(0) / (each[0].std(0, ddof=1) / values.shape[1] ** 0.5)
    return pd.DataFrame({"z": z, "p": np.minimum(1, p)}, index=draws[0].columns)


at_once = [measured["all at once"], measured["all at once, again"]]
compared = {"all at once, twice": at_once} | {
    name: [*at_once, measured[name]] for name in ("one by one", "keyframes first", "real")
}
tests = {name: mean_test(*draws) for name, draws in compared.items()}
z, p = (pd.DataFrame({name: test[column] for name, test in tests.items()}).T for column in "zp")

pictures.differences(z, p)

# %% [markdown]
# All statistics together: the energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| between the results of two plans, with
# the same relabelling within each start.


# %%
def energy_test(*draws):
    """Energy distance of the last to the others, in standardised statistics, and its p-value."""
    points = np.concatenate([frame.to_numpy(float) for frame in draws])
    points = (points - points.mean(0)) / points.std(0)
    apart = np.sqrt(np.square(points[:, None] - points).sum(-1))
    weights = relabelled(len(draws), len(draws[0])).reshape(-1, len(points)) / len(draws[0])
    distance = -((weights @ apart) * weights).sum(1)
    return {"energy distance": distance[0], "p": (distance >= distance[0] - 1e-9).mean()}


together = pd.DataFrame({name: energy_test(*draws) for name, draws in compared.items()}).T
together.assign(p=[f"{p:.4f}" if p > 1 / 4001 else "< 0.0003" for p in together["p"]]).round(4)

# %% [markdown]
# ## Where the plans part
#
# Frame by frame: how likely each new stack of frames is to look spoilt, and how much frames change. Bands are one
# standard error over starts.

# %%
spoilt, change = {}, {}
for name, video in ({"real": real} | videos).items():
    spoilt[name] = 1 - features.read(video).flaw.softmax(-1)[..., 0]  # [starts, stacks]; stack k ends at frame k + 4
    change[name] = (video[:, 1:].float() - video[:, :-1].float()).abs().mean((2, 3, 4))
pictures.frame_by_frame(spoilt, change, given=len(GIVEN))

# %% [markdown]
# ## Is it the score?
#
# One reason for which a diffusion model has no joint: its score is not a gradient. `score_asymmetry` estimates which
# share of the score's Jacobian is antisymmetric (0 for a gradient, 1/2 for independent random entries), at three noise
# levels, for the eight new frames given the four. It describes; a small share neither proves nor excludes that plans
# agree.


# %%
def flow_score(level):
    """The score of the new frames at a noise level, with the given frames fixed, and noised real windows."""
    query = Query.of(target=list(NEW), observed=list(GIVEN), num_sites=12).expand(NUM_LOOKS)
    where, index = query.target[..., None, None, None], torch.arange(12).expand(NUM_LOOKS, -1)
    clean = backbone.scale.to_network(real[:: len(real) // NUM_LOOKS][:NUM_LOOKS])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    at = torch.where(query.target, level, 0.0)
    windows = backbone.process.noised(clean, noise, at)

    def score(x):
        seen = torch.where(where, x, windows)
        velocity = backbone.network(seen, at, index, observed=query.observed)
        return torch.where(where, -(x + (1 - level) * velocity) / level, 0.0)

    return score, windows


NUM_LOOKS = 2 if QUICK else 4
levels = (0.5,) if QUICK else (0.2, 0.5, 0.8)
asymmetry = {}
for level in levels:
    score, windows = flow_score(level)
    asymmetry[level] = score_asymmetry(score, windows, generator=torch.Generator().manual_seed(1), num_probes=2)
pd.DataFrame(
    {
        level: {"antisymmetric share": a.value, "error": a.standard_error, "rounding alone": a.floor}
        for level, a in asymmetry.items()
    }
).T.rename_axis("noise level").style.format("{:.2g}").format_index("{:g}").set_uuid("score")

# %%
said = []
for name in ("one by one", "keyframes first"):
    found = [f'"{column.split(",")[0]}"' for column in tests[name].index[tests[name]["p"] < 0.05]]
    all_p = together.loc[name, "p"]
    said.append(f"*{name}* differs in {' and '.join(found) or 'no single statistic'} (all together: p = {all_p:.2g})")
spoilt = {name: f"{share:.0%}" for name, share in table["looks spoilt, share"].items()}
shares = [each.value for each in asymmetry.values()]
Markdown(
    f"**In short.** With {NUM_STARTS} starts and {NUM_STEPS} denoising steps, compared with *all at once*: "
    f"{'; '.join(said)}. The plan against itself: p = {together.loc['all at once, twice', 'p']:.2g}. Drawn all at once "
    f"{spoilt['all at once']} and {spoilt['all at once, again']} of the pictures look spoilt, one by one "
    f"{spoilt['one by one']}, keyframes first {spoilt['keyframes first']}; of real ones, {spoilt['real']}. The "
    f"antisymmetric share of the score is {min(shares):.2g} to {max(shares):.2g}."
)

# %% [markdown]
# **What this does not say.** Ten denoising steps are an approximation of their own, and each plan makes it differently;
# with more steps some of the difference would go. Two held-out walks are few mazes: the test is exact for these starts,
# and says nothing of others. And a disagreement between plans does not say which one is right. Reality does: compare
# the rows with *real*, and choose the plan that is nearest.
