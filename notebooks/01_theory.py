# %% [markdown]
# # When do conditionals have a joint?
#
# Somebody hands you p(x | y) and p(y | x). Each is a proper conditional law. Is there a joint p(x, y) that has both?
# Usually not, and this notebook shows on tables small enough to see everything
#
# 1. what decides: **cross-product ratios**;
# 2. what zeros change: **loops** longer than a rectangle;
# 3. what Gibbs sampling does when there is no joint: it has **a law for every scan**;
# 4. which joint is **closest**, and what a bound in nats on all joints is worth.
#
# Everything is computed exactly, in float64; nothing is drawn at random. Masked networks, whose tables nobody can write
# down, come in the [next notebook](02_is_my_masked_model_compatible.ipynb).

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

import flexgen as fg
from flexgen.compatibility import check_tables, closest_joint, rectangle_rank, scan_divergence, stationary

plt.rcParams.update({"figure.dpi": 90, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
INK, RED, BLUE, GREY = "#30343f", "#e4572e", "#3a7ca5", "#9a9da5"

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
def draw_loop(ax, tables, labels):
    """The four cells of a 2 x 2 table, and the probability of every move between neighbours."""
    x_given_y, y_given_x = (table.numpy() for table in tables.tables)
    xs, ys = labels
    for i in range(2):
        for j in range(2):
            cell = {"boxstyle": "round,pad=0.5", "fc": "white", "ec": INK}
            ax.text(j, -i, f"{xs[i]}, {ys[j]}", ha="center", va="center", bbox=cell, fontsize=8)
    for k in range(2):
        sideways = {"color": BLUE, "p": (y_given_x[k, 1], y_given_x[k, 0]), "ends": ((0, -k), (1, -k))}
        upright = {"color": RED, "p": (x_given_y[1, k], x_given_y[0, k]), "ends": ((k, 0), (k, -1))}
        for move, across in ((sideways, np.array([0.0, 0.09])), (upright, np.array([0.13, 0.0]))):
            here, there = np.array(move["ends"])
            for p, start, end, side in ((move["p"][0], here, there, 1), (move["p"][1], there, here, -1)):
                tail = start + 0.31 * (end - start) + side * across
                head = end - 0.31 * (end - start) + side * across
                style = {"arrowstyle": "-|>", "lw": 0.6 + 5 * p, "color": move["color"], "alpha": 0.8}
                ax.annotate("", head, tail, arrowprops={**style, "shrinkA": 0, "shrinkB": 0})
                ax.text(*((tail + head) / 2 + 0.9 * side * across), f"{p:.2f}", ha="center", va="center", fontsize=8)
    ax.set(xlim=(-0.5, 1.5), ylim=(-1.35, 0.35))
    ax.axis("off")


joint = torch.tensor([[0.30, 0.15], [0.25, 0.30]])
agreeing = fg.exact.JointTable(joint).conditional_tables()
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4))
for ax, each, title in zip(axes, (tables, agreeing), ("the two studies", "conditionals of one joint"), strict=True):
    draw_loop(ax, each, [["woman", "man"], ["non-smoker", "smoker"]])
    a, b = each.tables
    clockwise = float(b[0, 1] * a[1, 1] * b[1, 0] * a[0, 0])
    back = float(b[0, 0] * a[0, 1] * b[1, 1] * a[1, 0])
    ax.set_title(f"{title}: {clockwise:.4f} clockwise, {back:.4f} back", fontsize=10)
figure.tight_layout()
plt.show()

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


pictures = [interaction(x_given_y), interaction(changed)]
pictures.append(pictures[1] - pictures[0])
figure, axes = plt.subplots(1, 3, figsize=(9, 2.9), layout="constrained")
for ax, picture, title in zip(axes, pictures, ("in p(x | y)", "in p(y | x)", "difference"), strict=True):
    shown = ax.imshow(picture, cmap="RdBu_r", vmin=-0.9, vmax=0.9)
    for i in range(3):
        for j in range(3):
            ax.text(
                j,
                i,
                f"{picture[i, j]:+.2f}",
                ha="center",
                va="center",
                color="white" if abs(picture[i, j]) > 0.6 else INK,
            )
    ax.set_xticks(range(3), list("uvw"))
    ax.set_yticks(range(3), list("abc"))
    ax.set(xlabel="y", ylabel="x", title=title)
    ax.spines[:].set_visible(False)
figure.colorbar(shown, ax=axes, label="log interaction, nats", shrink=0.9)
plt.show()
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
figure, ax = plt.subplots(figsize=(3.6, 3.4))
for i in range(3):
    for j in range(3):
        possible = bool(x_given_y[i, j] > 0)
        ax.add_patch(plt.Rectangle((j - 0.5, i - 0.5), 1, 1, fc="white" if possible else "#dddddd", ec=GREY))
place = [(names["x"].index(x), names["y"].index(y)) for x, y in check_zeros.violation.states]
for (i0, j0), (i1, j1), step in zip(place, place[1:] + place[:1], check_zeros.violation.steps, strict=True):
    colour = BLUE if i0 == i1 else RED
    ax.annotate(
        "", (j1, i1), (j0, i0), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2, "shrinkA": 9, "shrinkB": 9}
    )
    middle = np.array([(j0 + j1) / 2, (i0 + i1) / 2]) + (np.array([0, -0.13]) if i0 == i1 else np.array([0.2, 0]))
    ax.text(*middle, f"{step.forward:.2f}", ha="center", va="center", fontsize=8, color=colour)
ax.plot([j for _, j in place], [i for i, _ in place], "o", ms=9, color=INK)
ax.set_xticks(range(3), names["y"])
ax.set_yticks(range(3), names["x"])
ax.set(xlim=(-0.5, 2.5), ylim=(2.5, -0.5), xlabel="y", ylabel="x", title="six possible cells, one loop", aspect="equal")
ax.tick_params(length=0)
figure.tight_layout()
plt.show()

# %% [markdown]
# With zeros there is also a verdict in between. **Weakly compatible**: some joint has all the conditionals wherever it
# has mass, but there are values that they condition on and that no such joint reaches. Below, x = c is answered for by
# p(y | x), yet every update leads away from it for good.

# %%
reached = torch.tensor([[0.20, 0.40], [0.25, 0.15]], dtype=torch.float64)  # a joint of x in {a, b} and y in {u, v}
never, either_way = torch.zeros(1, 2, dtype=torch.float64), torch.full((1, 2), 0.5, dtype=torch.float64)
x_given_y = torch.cat([reached / reached.sum(0), never])  # x = c never happens ..
y_given_x = torch.cat([reached / reached.sum(1, keepdim=True), either_way])  # .. and y has a law there all the same
check_weak = check_tables(
    fg.exact.ConditionalTables([x_given_y, y_given_x]), labels={"x": list("abc"), "y": list("uv")}
)
print(check_weak)
pd.DataFrame(check_weak.joint.p, index=list("abc"), columns=list("uv")).rename_axis("x").rename_axis("y", axis=1)

# %% [markdown]
# ## 3. Where Gibbs sampling goes
#
# Gibbs sampling does not ask whether there is a joint: it updates x from p(x | y), y from p(y | x), and converges. To
# what? After an update of x the law has p(x | y) exactly; after an update of y it has p(y | x). If no law has both, the
# chain jumps between two laws for ever, and the law you report depends on **which update came last**.
#
# For 2 x 2 tables this can be drawn. A law of two bits is three numbers: the two marginals and the log odds ratio. All
# laws that have a given p(x | y) form a straight line in the plane of the marginals, at a fixed log odds ratio;
# likewise those with p(y | x). Every update keeps one marginal and moves to the other line.

# %%
strong = fg.exact.ConditionalTables(
    [torch.tensor([[0.85, 0.25], [0.15, 0.75]]), torch.tensor([[0.45, 0.55], [0.20, 0.80]])]
)
a, b = (table.numpy() for table in strong.tables)
path = [np.array([[0.02, 0.03], [0.03, 0.92]])]  # where the chain starts
for step in range(12):
    law = path[-1]
    path.append(a * law.sum(0, keepdims=True) if step % 2 == 0 else b * law.sum(1, keepdims=True))
x1, y1 = np.array([law[1].sum() for law in path]), np.array([law[:, 1].sum() for law in path])
ratios = [np.log(law[0, 0] * law[1, 1] / law[0, 1] / law[1, 0]) for law in path[1:]]
laws = {scan: stationary(strong, scan).numpy() for scan in ((1, 0), (0, 1), "random")}

figure, (plane, height) = plt.subplots(1, 2, figsize=(9.5, 3.9), layout="constrained")
grid = np.array([0.0, 1.0])
plane.plot(a[1, 0] + (a[1, 1] - a[1, 0]) * grid, grid, color=RED, lw=2, label="all laws with p(x | y)")
plane.plot(grid, b[0, 1] + (b[1, 1] - b[0, 1]) * grid, color=BLUE, lw=2, label="all laws with p(y | x)")
plane.plot(x1, y1, "-", color=INK, lw=1)
plane.plot(x1, y1, "o", color=INK, ms=3.5, label="Gibbs, update by update")
plane.set(xlabel="P(x = 1)", ylabel="P(y = 1)", xlim=(0, 1), ylim=(0, 1), title="the marginals settle ..")
plane.legend(frameon=False, loc="lower right", fontsize=8)
plane.annotate("start", (x1[0], y1[0]), xytext=(-4, 6), textcoords="offset points", ha="right", fontsize=8)
height.axhline(log_odds_ratio(strong.tables[0]), color=RED, lw=2)
height.axhline(log_odds_ratio(strong.tables[1]), color=BLUE, lw=2)
height.plot(range(1, len(path)), ratios, "o-", color=INK, lw=1, ms=3.5)
random_ratio = np.log(laws["random"][0, 0] * laws["random"][1, 1] / laws["random"][0, 1] / laws["random"][1, 0])
height.axhline(random_ratio, color=GREY, ls="--", lw=1.5)
for level, name, colour in (
    (random_ratio, "random scan", INK),
    (log_odds_ratio(strong.tables[0]), "after updating x", RED),
    (log_odds_ratio(strong.tables[1]), "after updating y", BLUE),
):
    height.text(1.02, level, name, transform=height.get_yaxis_transform(), va="center", color=colour, fontsize=8)
height.set(xlabel="update", ylabel="log odds ratio of the law, nats", title=".. the dependence never does")
height.margins(y=0.12)
plt.show()

# %% [markdown]
# The lines cross in the plane but lie at different heights: both laws have the same marginals, and only the dependence
# differs. With two sites that is always so. *Marginals of single sites say little about incompatibility; look at two
# sites together.*
#
# `stationary` has the law of any scan, `scan_divergence` the distance of two. The random scan's law is the average of
# both orders' (with two sites; not with more). It is the safe default: its conditionals never have a worse unary loss
# than those that it was made from.

# %%
rows = {
    "x then y": (laws[0, 1], (0, 1)),
    "y then x": (laws[1, 0], (1, 0)),
    "random": (laws["random"], "random"),
}
pd.DataFrame(
    {
        name: {
            "P(x = 1)": law[1].sum(),
            "P(y = 1)": law[:, 1].sum(),
            "P(both)": law[1, 1],
            "total variation to x then y": scan_divergence(strong, (0, 1), scan).tv,
        }
        for name, (law, scan) in rows.items()
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
figure, axes = plt.subplots(1, 2, figsize=(8.5, 2.9), layout="constrained")
for ax, values, colour, label in zip(
    axes, (distances, prices), (RED, BLUE), ("total variation between scans", "I-certificate, nats"), strict=True
):
    ax.plot(gaps, values, color=colour, lw=2)
    ax.set(xlabel="gap of the rectangle, nats", ylabel=label, xlim=(0, 3), ylim=(0, None))
plt.show()

# %% [markdown]
# ## 4. The closest joint
#
# If there is no joint, one may still want one. "Closest" has several meanings, and `closest_joint` solves four of them,
# each with a lower bound that proves the answer optimal:
#
# * **I**: Σᵢ KL(r ‖ r₋ᵢ qᵢ), in nats. Its least value is a *certificate*: whatever law the data have, these
#   conditionals together lose at least so many nats a row against the true ones, because they are incompatible.
# * **AG** (Arnold and Gokhale): Σ over contexts of KL(qᵢ ‖ rᵢ): rare contexts count like common ones.
# * **LP**: the largest error of a joint probability. **L2**: the sum of its squares.

# %%
candidates = {kind: closest_joint(tables3, kind) for kind in ("I", "AG", "LP", "L2")}
for closest in candidates.values():
    print(closest)


def distances_of(r):
    """A law's distance from the conditionals, by each of the four measures."""
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
table = pd.DataFrame({name: distances_of(law) for name, law in compared.items()}).T
table.style.format("{:.5f}").highlight_min(axis=0, props="font-weight: bold").set_uuid("measures")

# %% [markdown]
# Each closest joint wins its own column. The random scan is close behind in all of them, and a fixed order is worst: it
# has one conditional exactly and makes the other pay.

# %%
Markdown(
    "**In short.** Two conditionals have a joint if their odds ratios agree, and with zeros if all longer loops do. "
    "If not, Gibbs sampling has one law for each scan. In the last example a gap of "
    f"{check3.log_odds_gap:.2f} nats in one rectangle puts {scan_divergence(tables3, (0, 1), (1, 0)).tv:.3f} of total "
    f"variation between the two scans, and costs {candidates['I'].objective:.4f} nats a row whatever the truth is. "
    "Next: [is my masked model compatible?](02_is_my_masked_model_compatible.ipynb)"
)
