# %% [markdown]
# # Is my masked model compatible?
#
# A masked model learns p(x_i | any other columns) with one network for all masks. Nothing makes these conditionals
# agree on a joint. `fg.diagnose` measures by how much they do not: this notebook fits a model to a real table and reads
# the report from top to bottom. (What "agree" means is shown on small tables [in the theory](01_theory.ipynb).)

# %%
import os

import pandas as pd
import pictures
import torch
from IPython.display import Markdown

import flexgen as fg
from flexgen.compatibility import check_tables, exact_blocks

QUICK = bool(os.environ.get("FLEXGEN_NOTEBOOK_QUICK"))  # smaller numbers, for tests

# %% [markdown]
# ## A real table
#
# 442 patients with diabetes, and every column of their table: measurements, a rounded ratio, a binary column. Body mass
# index and blood pressure are cut into classes, as a clinic would record them, so that there are categorical columns
# too. A hundred patients are held out: the model should not be judged in contexts that it has learned by heart.

# %%
df = fg.data.load_table("diabetes").rename(
    columns={"bp": "pressure", "s1": "cholesterol", "s2": "ldl", "s3": "hdl", "s4": "cholesterol / hdl"}
    | {"s5": "log triglycerides", "s6": "glucose"}
)
classes = {
    "bmi": ([0, 25, 30, 99], ["normal", "over", "obese"]),
    "pressure": ([0, 85, 100, 999], ["low", "mid", "high"]),
}
for name, (bounds, labels) in classes.items():
    df[name] = pd.cut(df[name], bounds, labels=labels).astype(str).astype("category")
held_out = df.sample(100, random_state=0)
settings = fg.TableSettings(small_steps=100) if QUICK else None
model = fg.TableModel.fit(df.drop(held_out.index), seed=0, settings=settings)
model

# %% [markdown]
# ## The report
#
# One call. The budget is the number of rows that may pass the network (a time, such as `"30 s"`, will do as well). The
# diagnosis decides what to look at within it: which pairs of columns, in the contexts of which rows, at which values.

# %%
report = fg.diagnose(model, held_out, budget=3_000 if QUICK else 20_000, generator=0)
report

# %% [markdown]
# **How to read it.** Two questions have an answer each. *Is there a joint?* A network's answers are not random. So one
# value that rounding cannot explain is enough: no joint has these conditionals, and the verdict is *refuted*. Almost
# any network is. *How far from one?* The mean effect, its interval, and a size class: negligible below 0.01 nats, small
# below 0.1, moderate below 1, large above.
#
# Each line of the table is one kind of disagreement, as a mean of absolute values in nats:
#
# * **rectangle gap**: given all other columns, p(i | j) and p(j | i) each have a log odds ratio of i and j. A joint has
#   one, so the difference should be zero. This compares the *complete* conditionals, which Gibbs sampling uses.
# * **circulation**: for a random context C, is p(i | C) p(j | C, i) the same as p(j | C) p(i | C, j)? It has two parts:
#   the **interaction part** is what rectangles see; the **marginal part** is disagreement between conditionals with
#   different observed sets, which Gibbs sampling never uses and the chain rule does.
# * **order gap**: log p(row) by the chain rule in one order of the columns, less another. A sum of circulations, and
#   what you meet when you compare likelihoods.
# * **block scan divergence**: for two or three columns the conditionals are evaluated at every state, and the
#   distribution of Gibbs sampling is computed for every order of the scan. The number is the largest total variation
#   distance between two orders, from 0 to 1, not nats.
#
# And the columns of the table:
#
# * **weighted mean**: a value counts by its probability under the model; **uniform mean**: all values count alike. If
#   the uniform mean is much larger, the disagreement sits in states that hardly occur.
# * The **intervals** come from differences between patients. Many values of one patient count as one observation. The
#   upper limit allows for rare patients with much larger gaps, whom a sample of a hundred may lack.
# * **floor**: what rounding could make; **above floor**: the share of values that rounding cannot explain.
# * **verdict, size**: *refuted* if a single value is above its floor, and how large the weighted mean is.
#
# The picture has the same in four panels.

# %%
report.plot()

# %% [markdown]
# ## Which columns, and what it looks like
#
# `report.pairs()` lists the pairs of columns. The two directions of the worst one disagree by this much on average:

# %%
report.pairs().head(6)[["site_0", "site_1", "weighted", "uniform", "largest"]].round(3)

# %% [markdown]
# To see what a gap is made of, take all states of sex and pressure in the context of one held-out patient.
# `exact_blocks` evaluates the network at all of them, and `check_tables` decides, in the table's own labels.

# %%
columns = list(df.columns)
block = torch.tensor([columns.index("sex"), columns.index("pressure")])
x = model.schema.encode(held_out)
blocks = exact_blocks(model.conditional(), x, block)
checks = [
    check_tables(tables, labels={name: list(df[name].cat.categories) for name in ("sex", "pressure")})
    for tables in blocks.tables
]
gaps = torch.tensor([check.log_odds_gap for check in checks])
patient = int(gaps.argsort()[len(gaps) // 2])  # neither the best nor the worst
print(held_out.iloc[patient].to_string(), "\n")
print(checks[patient])

# %% [markdown]
# Below, the odds of the two sexes as the pressure changes, each computed twice: from p(sex | pressure, rest), and
# from p(pressure | sex, rest) by Bayes' rule. The second leaves one level open (the marginal odds), so both are drawn
# relative to *low* pressure. Of one joint, each pair of lines would lie on top of each other.

# %%
levels = ["low", "mid", "high"]
codes = [list(df["pressure"].cat.categories).index(level) for level in levels]
chosen = [int(gaps.argsort()[int(share * (len(gaps) - 1))]) for share in (0.1, 0.5, 0.9)]
pictures.odds_by_both([(float(gaps[k]), blocks.tables[k]) for k in chosen], levels, codes)

# %% [markdown]
# ## Is that much?
#
# Three yardsticks. The interactions themselves: how large are the log odds ratios whose two directions differ? The
# rows: how much does log p(row) vary between patients, compared with its order gap? The answer: how far apart are the
# distributions that Gibbs sampling ends in?

# %%
one, other = (report.directions[name] for name in ("forward", "backward"))
interaction = float((one.abs() + other.abs()).mean() / 2)
log_p = model.log_prob(held_out, target=columns, num_orders=1, generator=0)
rectangle, order, scans = (  # uniform means, as the yardsticks are
    report.effects[name].uniform() for name in ("rectangle gap", "order gap", "block scan divergence")
)
pd.DataFrame(
    {
        "disagreement": [rectangle.value, order.value, scans.value],
        "yardstick": [interaction, float(log_p.std()), 1.0],
        "which is": [
            "mean size of a log odds ratio, nats",
            "sd of log p(row) between patients, nats",
            "the largest possible total variation",
        ],
    },
    index=["rectangle gap", "order gap", "scan divergence of a block"],
).round(3)

# %% [markdown]
# **A margin** turns "is it zero?" into "is it small enough?". Say which disagreement you would ignore, in nats,
# *before* you look (`fg.diagnose(.., margin=0.25)`; here it comes after, to show the difference), and the verdict can
# become "equivalent within margin": the only verdict in favour of a model. A margin in nats does not judge total
# variation, which keeps its verdict.

# %%
lenient = report.with_margin(0.25)
lenient.to_dataframe()[["effect", "unit", "weighted", "weighted_low", "weighted_high", "verdict"]].round(3)

# %% [markdown]
# ## A control
#
# Would the diagnosis find something where there is nothing? The counts of the three categorical columns give a joint
# table; its conditionals agree by construction. The same call finds gaps at the level of rounding.

# %%
control_columns = ["sex", "bmi", "pressure"]
codes = torch.stack([torch.tensor(df[name].cat.codes.to_numpy(copy=True)).long() for name in control_columns], 1)
counts = torch.zeros(2, 3, 3, dtype=torch.float64).index_put_(
    tuple(codes.T), torch.tensor(1.0).double(), accumulate=True
)
joint = fg.exact.JointTable.from_unnormalised(counts + 1)
control = fg.diagnose(joint, codes[:100], budget=2_000, generator=0)
found = control.to_dataframe()[["effect", "weighted", "weighted_floor", "verdict"]]
found.style.format("{:.1e}", subset=["weighted", "weighted_floor"]).set_uuid("control")

# %% [markdown]
# ## What the report cannot say
#
# * It looked at some pairs, values and contexts. A gap that it found is there; a gap that it did not find may be
#   elsewhere. Hence "not refuted", never "compatible".
# * It says nothing about whether the conditionals are *right*. A model that ignores its context is compatible.
# * Its mean gap is not yet your problem. Whether *your* statistic moves is another measurement: [does it matter, and
#   how is it repaired?](04_does_it_matter_and_repair.ipynb)
#
# `report.to_html("report.html")` keeps everything in one file, `report.to_dataframe()` the numbers; [the page on
# networks](../docs/compatibility/networks.md) has the definitions.

# %%
Markdown(
    f"**In short.** The default table model has no joint: *{report.verdict}*, {report.size} in size. Given the "
    f"rest, the two directions of an interaction differ by {rectangle.value:.3f} nats ({rectangle.low:.3f} to "
    f"{rectangle.high:.3f}) on average, where interactions measure {interaction:.2f}; the order of the chain rule "
    f"moves log p(row) by {order.value:.2f} nats where rows differ by {float(log_p.std()):.1f} (sd); and reordering "
    f"the Gibbs scan moves the distribution of a block of columns by {scans.value:.3f} in total variation."
)
