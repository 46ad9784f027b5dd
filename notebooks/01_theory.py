# %% [markdown]
# # When do conditionals have a joint?
#
# Somebody hands you p(x | y) and p(y | x). Each is a proper conditional distribution. Is there a joint p(x, y)
# that has both? Usually not, and this notebook shows on tables small enough to see everything
#
# 1. what decides: **cross-product ratios**;
# 2. what zeros change: **loops** longer than a rectangle;
# 3. what Gibbs sampling does when there is no joint: **every scan has a distribution of its own**;
# 4. which joint is **closest**, and what a bound in nats on all joints is worth.
#
# Everything is computed exactly, in float64; nothing is drawn at random. Masked networks, whose tables nobody can write
# down, come in the [next notebook](02_is_my_masked_model_compatible.ipynb).

# %%
import numpy as np
import pandas as pd
import pictures
import torch
from IPython.display import Markdown

import flexgen as fg
from flexgen.compatibility import check_tables, closest_joint, rectangle_rank, scan_divergence, stationary

# %% [markdown]
# ## 1. Two by two
#
# One study reports who among smokers and non-smokers is a woman; another, how many women and men smoke. `tables[i]` is
# the conditional of site i given the other; it sums to one over axis i.

# %%
labels = {"sex": ["woman", "man"], "smokes": ["no", "yes"]}
sex_given_smoker = torch.tensor([[0.5, 0.5], [0.5, 0.5]])  # p(sex | smoker): columns sum to one
smoker_given_sex = torch.tensor([[2 / 3, 1 / 3], [1 / 2, 1 / 2]])  # p(smoker | sex): rows sum to one
tables = fg.exact.ConditionalTables([sex_given_smoker, smoker_given_sex])
check = check_tables(tables, labels=labels)
print(check)

# %% [markdown]
# The first study says that smoking tells nothing about sex; the second, that sex tells something about smoking. No
# joint has both. The printed loop is the proof. Walk round the four cells and multiply the probabilities of the moves:
# for a joint it cannot matter which way round, since p(x | y) / p(x' | y) = p(x, y) / p(x', y), and round the loop the
# joint cancels.

# %%
joint = torch.tensor([[0.30, 0.15], [0.25, 0.30]])
agreeing = fg.exact.JointTable(joint).conditional_tables()
families = {"the two studies": tables, "conditionals of one joint": agreeing}
pictures.rectangle_loops(families, [["woman", "man"], ["non-smoker", "smoker"]])

# %% [markdown]
# The same said with odds. A conditional fixes the table's **cross-product ratio** (odds ratio) whatever the marginals
# are: p(x | y) leaves p(y) free, and scaling columns does not change the ratio. So both conditionals must give the same
# one. For two variables and no zeros that is all:
#
# > p(x | y) and p(y | x) have a joint if and only if every 2 x 2 rectangle has the same cross-product ratio in both.
#
# The difference of the two log ratios, in nats, is the **gap** of the rectangle. It is the unit of everything that
# follows, and what `fg.diagnose` measures on networks.


# %%
def log_odds_ratio(table):
    log = table.log()
    return float(log[0, 0] + log[1, 1] - log[0, 1] - log[1, 0])


pd.DataFrame(
    {
        "log odds ratio in p(sex | smoker)": [log_odds_ratio(t.tables[0]) for t in (tables, agreeing)],
        "in p(smoker | sex)": [log_odds_ratio(t.tables[1]) for t in (tables, agreeing)],
        "gap, nats": [check_tables(t).log_odds_gap for t in (tables, agreeing)],
        "verdict": [check_tables(t).verdict for t in (tables, agreeing)],
    },
    index=["the two studies", "conditionals of one joint"],
).round(4)

# %% [markdown]
# ## 2. Three by three, and zeros
#
# A 3 x 3 table has nine rectangles, of which four are independent; `rectangle_rank` counts them for any shape. Here one
# row of p(y | x) of a compatible pair is replaced, and the map shows where the two conditionals now disagree.

# %%
joint3 = torch.tensor([[1.0, 2, 3], [3, 2, 1], [1, 3, 4]]) / 20
x_given_y, y_given_x = fg.exact.JointTable(joint3).conditional_tables().tables
changed = y_given_x.clone()
changed[1] = torch.tensor([0.35, 0.33, 0.32])  # one row: more of the last category
tables3 = fg.exact.ConditionalTables([x_given_y, changed])
check3 = check_tables(tables3, labels={"x": list("abc"), "y": list("uvw")})


def interaction(table):
    """The log table less its row and column means: all that its cross-product ratios say."""
    log = table.log()
    return log - log.mean(0, keepdim=True) - log.mean(1, keepdim=True) + log.mean()


one, other = interaction(x_given_y), interaction(changed)
maps = {"in p(x | y)": one, "in p(y | x)": other, "difference": other - one}
pictures.interaction_maps(maps, list("abc"), list("uvw"))
Markdown(
    f"{rectangle_rank((3, 3))} independent rectangles; verdict: **{check3.verdict}**, largest gap "
    f"{check3.log_odds_gap:.3f} nats. For three variables of three categories there are {rectangle_rank((3, 3, 3))}."
)

# %% [markdown]
# **Zeros.** Where cells are impossible, rectangles may be missing, and what is left can agree everywhere although there
# is no joint. In the table below (Arnold and Gokhale) no rectangle has four possible cells, so there is nothing to
# compare two by two. The loop that decides passes all six possible cells.

# %%
third = 1 / 3
x_given_y = torch.tensor([[third, 2 * third, 0.0], [0.0, third, 2 * third], [2 * third, 0.0, third]])
y_given_x = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5]])
names = {"x": list("abc"), "y": list("uvw")}
zeros = fg.exact.ConditionalTables([x_given_y, y_given_x])
check_zeros = check_tables(zeros, labels=names)
print(check_zeros)

# %%
pictures.loop_of_cells(check_zeros.violation, x_given_y > 0, names["x"], names["y"])

# %% [markdown]
# With zeros there is also a verdict in between. **Weakly compatible**: some joint has all the conditionals wherever it
# has mass, but there are values that they condition on and that no such joint reaches. Below, x = c is answered for by
# p(y | x), yet every update leads away from it for good.

# %%
reached = torch.tensor([[0.20, 0.40], [0.25, 0.15]], dtype=torch.float64)  # a joint of x in {a, b} and y in {u, v}
never, either_way = torch.zeros(1, 2, dtype=torch.float64), torch.full((1, 2), 0.5, dtype=torch.float64)
x_given_y = torch.cat([reached / reached.sum(0), never])  # x = c never happens ..
y_given_x = torch.cat([reached / reached.sum(1, keepdim=True), either_way])  # .. but y has a distribution there
check_weak = check_tables(
    fg.exact.ConditionalTables([x_given_y, y_given_x]), labels={"x": list("abc"), "y": list("uv")}
)
print(check_weak)
pd.DataFrame(check_weak.joint.p, index=list("abc"), columns=list("uv")).rename_axis("x").rename_axis("y", axis=1)

# %% [markdown]
# ## 3. Where Gibbs sampling goes
#
# Gibbs sampling runs whether there is a joint or not: it updates x from p(x | y), y from p(y | x), and converges. To
# what? After an update of x the chain's distribution has p(x | y) exactly; after an update of y it has p(y | x). If no
# joint has both, the chain alternates between two distributions for ever, and the one you report depends on **which
# update came last**.
#
# For 2 x 2 tables this can be drawn. A distribution of two bits is three numbers: the two marginals and the log odds
# ratio. All distributions that have a given p(x | y) form a straight line in the plane of the marginals, at a fixed log
# odds ratio; likewise those with p(y | x). Every update keeps one marginal and moves to the other line.

# %%
strong = fg.exact.ConditionalTables(
    [torch.tensor([[0.85, 0.25], [0.15, 0.75]]), torch.tensor([[0.45, 0.55], [0.20, 0.80]])]
)
a, b = (table.numpy() for table in strong.tables)
path = [np.array([[0.02, 0.03], [0.03, 0.92]])]  # where the chain starts
for step in range(12):
    p = path[-1]
    path.append(a * p.sum(0, keepdims=True) if step % 2 == 0 else b * p.sum(1, keepdims=True))
x1, y1 = np.array([p[1].sum() for p in path]), np.array([p[:, 1].sum() for p in path])
ratios = [log_odds_ratio(torch.from_numpy(p)) for p in path[1:]]
ends = {scan: stationary(strong, scan) for scan in ((1, 0), (0, 1), "random")}

levels = {
    "random scan": log_odds_ratio(ends["random"]),
    "after updating x": log_odds_ratio(strong.tables[0]),
    "after updating y": log_odds_ratio(strong.tables[1]),
}
pictures.gibbs_path(strong, x1, y1, ratios, levels)

# %% [markdown]
# The lines cross in the plane but lie at different heights: both distributions have the same marginals, and only the
# dependence differs. With two sites that is always so. *Marginals of single sites say little about incompatibility;
# look at two sites together.*
#
# `stationary` is the distribution that a scan ends in, `scan_divergence` the distance between two scans. The random
# scan's distribution is the average of both orders' (with two sites; not with more). It is the safe default: its
# conditionals never have a worse unary loss than those that it was made from.

# %%
rows = {
    "x then y": (ends[0, 1], (0, 1)),
    "y then x": (ends[1, 0], (1, 0)),
    "random": (ends["random"], "random"),
}
pd.DataFrame(
    {
        name: {
            "P(x = 1)": float(p[1].sum()),
            "P(y = 1)": float(p[:, 1].sum()),
            "P(both)": float(p[1, 1]),
            "total variation to x then y": scan_divergence(strong, (0, 1), scan).tv,
        }
        for name, (p, scan) in rows.items()
    }
).T.round(4)

# %% [markdown]
# How much does a gap of so many nats matter? Below, p(x | y) is fixed and p(y | x) is bent away from it, step by step.
# Up to a gap of a nat or so, the distance between scans grows in proportion; the price in nats, explained next, grows
# with the square.

# %%
base = fg.exact.JointTable(torch.tensor([[0.3, 0.2], [0.2, 0.3]])).conditional_tables().tables
gaps, distances, prices = np.linspace(0, 3, 25), [], []
for gap in gaps:
    log = base[1].log() + torch.tensor([[0.25, -0.25], [-0.25, 0.25]], dtype=torch.float64) * gap
    bent = fg.exact.ConditionalTables([base[0], log.softmax(1)])
    distances.append(scan_divergence(bent, (0, 1), (1, 0)).tv)
    prices.append(closest_joint(bent, "I").objective)
series = {"total variation between scans": distances, "I-certificate, nats": prices}
pictures.curves(gaps, series, "gap of the rectangle, nats")

# %% [markdown]
# ## 4. The closest joint
#
# If there is no joint, one may still want one. "Closest" has several meanings, and `closest_joint` solves four of them,
# each with a lower bound that proves the answer optimal:
#
# * **I**: Σᵢ KL(r ‖ r₋ᵢ qᵢ), in nats. Its least value is a *certificate*: whatever distribution the data have, these
#   conditionals together lose at least so many nats a row against the true ones, because they are incompatible.
# * **AG** (Arnold and Gokhale): Σ over contexts of KL(qᵢ ‖ rᵢ): rare contexts count like common ones.
# * **LP**: the largest error of a joint probability. **L2**: the sum of its squares.

# %%
candidates = {kind: closest_joint(tables3, kind) for kind in ("I", "AG", "LP", "L2")}
for closest in candidates.values():
    print(closest)


def distances_of(r):
    """A joint's distance from the conditionals, by each of the four measures."""
    found = dict.fromkeys(("I", "AG", "LP", "L2"), 0.0)
    for i, q in enumerate(tables3.tables):
        rest = r.sum(i, keepdim=True)
        own = r / rest
        found["I"] += float((r * (own / q).log()).sum())
        found["AG"] += float((q * (q / own).log()).sum())
        found["LP"] = max(found["LP"], float((r - rest * q).abs().max()))
        found["L2"] += float((r - rest * q).square().sum())
    return found


others = {
    "random scan": stationary(tables3, "random"),
    "order x, y": stationary(tables3, (0, 1)),
    "order y, x": stationary(tables3, (1, 0)),
}
compared = {f"closest by {kind}": closest.joint.p for kind, closest in candidates.items()} | others
table = pd.DataFrame({name: distances_of(p) for name, p in compared.items()}).T
table.style.format("{:.5f}").highlight_min(axis=0, props="font-weight: bold").set_uuid("measures")

# %% [markdown]
# Each closest joint wins its own column. The random scan is close behind in all of them, and a fixed order is worst: it
# has one conditional exactly and makes the other pay.

# %%
Markdown(
    "**In short.** Two conditionals have a joint if their odds ratios agree, and with zeros if all longer loops do. "
    "If not, every scan of Gibbs sampling has a distribution of its own. In the last example a gap of "
    f"{check3.log_odds_gap:.2f} nats in one rectangle puts {scan_divergence(tables3, (0, 1), (1, 0)).tv:.3f} of total "
    f"variation between the two scans, and costs {candidates['I'].objective:.4f} nats a row whatever the truth is. "
    "Next: [is my masked model compatible?](02_is_my_masked_model_compatible.ipynb)"
)
