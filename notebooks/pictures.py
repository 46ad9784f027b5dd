"""The pictures of the notebooks. What they show is computed there; here it is drawn."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

INK, RED, BLUE, GREEN, GREY = "#30343f", "#e4572e", "#3a7ca5", "#5b8e55", "#9a9da5"
plt.rcParams.update({"figure.dpi": 80, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def numbers(ax: Any, table: Any, text: Any, limit: float) -> None:
    """Writes ``text(i, j)`` into every cell of a map, white where the value is beyond the limit."""
    for i, j in itertools.product(*map(range, table.shape)):
        colour = "white" if abs(table[i, j]) > limit else INK
        ax.text(j, i, text(i, j), ha="center", va="center", fontsize=8, color=colour)


# 01, theory.


def rectangle_loops(families: Mapping[str, Any], labels: Sequence[Sequence[str]]) -> None:
    """Of each family of 2 x 2 tables the four cells, and the probability of every move between neighbours."""
    figure, axes = plt.subplots(1, len(families), figsize=(10, 3.4))
    for ax, (title, tables) in zip(axes, families.items(), strict=True):
        _loop(ax, tables, labels)
        a, b = tables.tables
        clockwise = float(b[0, 1] * a[1, 1] * b[1, 0] * a[0, 0])
        back = float(b[0, 0] * a[0, 1] * b[1, 1] * a[1, 0])
        ax.set_title(f"{title}: {clockwise:.4f} clockwise, {back:.4f} back", fontsize=10)
    figure.tight_layout()
    plt.show()


def _loop(ax: Any, tables: Any, labels: Sequence[Sequence[str]]) -> None:
    x_given_y, y_given_x = (table.numpy() for table in tables.tables)
    xs, ys = labels
    for i, j in itertools.product(range(2), repeat=2):
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


def interaction_maps(maps: Mapping[str, torch.Tensor], xs: Sequence[str], ys: Sequence[str]) -> None:
    """Log interactions of two variables, nats."""
    figure, axes = plt.subplots(1, len(maps), figsize=(9, 2.9), layout="constrained")
    for ax, (title, table) in zip(axes, maps.items(), strict=True):
        shown = ax.imshow(table, cmap="RdBu_r", vmin=-0.9, vmax=0.9)
        numbers(ax, table, lambda i, j, table=table: f"{table[i, j]:+.2f}", 0.6)
        ax.set_xticks(range(len(ys)), ys)
        ax.set_yticks(range(len(xs)), xs)
        ax.set(xlabel="y", ylabel="x", title=title)
        ax.spines[:].set_visible(False)
    figure.colorbar(shown, ax=axes, label="log interaction, nats", shrink=0.9)
    plt.show()


def loop_of_cells(violation: Any, possible: torch.Tensor, xs: Sequence[str], ys: Sequence[str]) -> None:
    """The loop of states that proves a violation, over the possible cells of a table."""
    figure, ax = plt.subplots(figsize=(3.6, 3.4))
    for i, j in itertools.product(*map(range, possible.shape)):
        ax.add_patch(plt.Rectangle((j - 0.5, i - 0.5), 1, 1, fc="white" if possible[i, j] else "#dddddd", ec=GREY))
    cells = [(xs.index(x), ys.index(y)) for x, y in violation.states]
    for (i0, j0), (i1, j1), step in zip(cells, cells[1:] + cells[:1], violation.steps, strict=True):
        colour = BLUE if i0 == i1 else RED
        arrow = {"arrowstyle": "-|>", "color": colour, "lw": 2, "shrinkA": 9, "shrinkB": 9}
        ax.annotate("", (j1, i1), (j0, i0), arrowprops=arrow)
        middle = np.array([(j0 + j1) / 2, (i0 + i1) / 2]) + (np.array([0, -0.13]) if i0 == i1 else np.array([0.2, 0]))
        ax.text(*middle, f"{step.forward:.2f}", ha="center", va="center", fontsize=8, color=colour)
    ax.plot([j for _, j in cells], [i for i, _ in cells], "o", ms=9, color=INK)
    ax.set_xticks(range(len(ys)), ys)
    ax.set_yticks(range(len(xs)), xs)
    rows, columns = possible.shape
    ax.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), xlabel="y", ylabel="x", aspect="equal")
    ax.set_title(f"{int(possible.sum())} possible cells, one loop")
    ax.tick_params(length=0)
    figure.tight_layout()
    plt.show()


def gibbs_path(
    tables: Any, x1: np.ndarray, y1: np.ndarray, log_ratios: Sequence[float], levels: Mapping[str, float]
) -> None:
    """A Gibbs chain's distribution after every update: its marginals, and its log odds ratio.

    Args:
        tables: p(x | y) and p(y | x) of two bits.
        x1, y1: P(x = 1) and P(y = 1), the start first.
        log_ratios: after every update.
        levels: where the log odds ratio stays, by scan: the random one, after updating x, after updating y.
    """
    a, b = (table.numpy() for table in tables.tables)
    _, (plane, height) = plt.subplots(1, 2, figsize=(9.5, 3.9), layout="constrained")
    grid = np.array([0.0, 1.0])
    plane.plot(a[1, 0] + (a[1, 1] - a[1, 0]) * grid, grid, color=RED, lw=2, label="all distributions with p(x | y)")
    plane.plot(grid, b[0, 1] + (b[1, 1] - b[0, 1]) * grid, color=BLUE, lw=2, label="all distributions with p(y | x)")
    plane.plot(x1, y1, "-", color=INK, lw=1)
    plane.plot(x1, y1, "o", color=INK, ms=3.5, label="Gibbs, update by update")
    plane.set(xlabel="P(x = 1)", ylabel="P(y = 1)", xlim=(0, 1), ylim=(0, 1), title="the marginals settle ..")
    plane.legend(frameon=False, loc="lower right", fontsize=8)
    plane.annotate("start", (x1[0], y1[0]), xytext=(-4, 6), textcoords="offset points", ha="right", fontsize=8)
    for (name, level), colour, style in zip(levels.items(), (GREY, RED, BLUE), ("--", "-", "-"), strict=True):
        height.axhline(level, color=colour, ls=style, lw=2)
        text = INK if colour == GREY else colour
        height.text(1.02, level, name, transform=height.get_yaxis_transform(), va="center", color=text, fontsize=8)
    height.plot(range(1, 1 + len(log_ratios)), log_ratios, "o-", color=INK, lw=1, ms=3.5)
    height.set(xlabel="update", ylabel="log odds ratio, nats", title=".. the dependence never does")
    height.margins(y=0.12)
    plt.show()


def curves(x: np.ndarray, values: Mapping[str, Sequence[float]], xlabel: str) -> None:
    """One panel for each series, over the same x."""
    _, axes = plt.subplots(1, len(values), figsize=(8.5, 2.9), layout="constrained")
    for ax, colour, (label, series) in zip(axes, (RED, BLUE), values.items(), strict=True):
        ax.plot(x, series, color=colour, lw=2)
        ax.set(xlabel=xlabel, ylabel=label, xlim=(x[0], x[-1]), ylim=(0, None))
    plt.show()


# 02, a table model.


def odds_by_both(panels: Sequence[tuple[float, Any]], levels: Sequence[str], codes: Sequence[int]) -> None:
    """Log odds of sex over levels of pressure, by either conditional.

    Args:
        panels: gap, and the tables p(sex | pressure) and p(pressure | sex) ``[2, levels]``.
        levels: of pressure, in order.
        codes: of these levels.
    """
    _, axes = plt.subplots(1, len(panels), figsize=(9, 2.7), sharey=True, layout="constrained")
    for ax, word, (gap, tables) in zip(axes, ("small", "median", "large"), panels, strict=True):
        for table, colour, name in zip(
            tables.tables, (RED, BLUE), ("from p(sex | pressure)", "from p(pressure | sex)"), strict=True
        ):
            odds = (table.log()[1] - table.log()[0])[codes]
            ax.plot(levels, odds - odds[0], "o-", color=colour, label=name)
        ax.set_title(f"a {word} gap: {gap:.2f} nats", fontsize=9)
        ax.set_xlabel("pressure")
    axes[0].set_ylabel("log odds of sex 2 : 1,\nrelative to low pressure, nats")
    axes[0].legend(frameon=False, fontsize=8)
    plt.show()


# 03, a masked language model.


def residue_map(probabilities: torch.Tensor, own: torch.Tensor, letters: str, names: Sequence[str]) -> None:
    """p(residue | the rest) ``[sites, letters]``; circles at the sequence's own residues."""
    figure, ax = plt.subplots(figsize=(5.2, 4.2), layout="constrained")
    shown = ax.imshow(probabilities.T, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    ax.scatter(range(len(own)), own, s=75, facecolors="none", edgecolors=RED, lw=1.6, label="trastuzumab")
    ax.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1))
    ax.set_yticks(range(len(letters)), letters, fontsize=8)
    ax.set_xticks(range(len(own)), names, fontsize=8)
    ax.set(xlabel="residue of trastuzumab, and its position (from 0)", ylabel="residue")
    figure.colorbar(shown, shrink=0.8, label="p(residue | the rest)")
    plt.show()


def scans_and_motifs(apart: pd.DataFrame, motifs: Sequence[str], probabilities: Mapping[str, torch.Tensor]) -> None:
    """Distances between the distributions of scans; motifs and their probabilities under two of the scans."""
    _, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained", width_ratios=(1, 1.1))
    shown = left.imshow(apart, cmap="magma_r", vmin=0)
    values = apart.to_numpy()
    numbers(left, values, lambda i, j: f"{values[i, j]:.2f}", 0.35 * values.max())
    left.set_xticks(range(len(apart)), apart.columns, rotation=90, fontsize=8)
    left.set_yticks(range(len(apart)), apart.columns, fontsize=8)
    left.set_title("total variation between the distributions of scans", fontsize=9, loc="left")
    left.figure.colorbar(shown, ax=left, shrink=0.8)
    y = np.arange(len(motifs))
    for shift, colour, (name, p) in zip((-0.2, 0.2), (BLUE, RED), probabilities.items(), strict=True):
        right.barh(y + shift, p, 0.38, color=colour, label=f"scan {name}")
    right.set_yticks(y, motifs, family="monospace")
    right.invert_yaxis()
    right.set_xlabel("probability of the motif")
    right.set_title("the motifs that the order of the scan changes most", fontsize=9, loc="left")
    right.legend(frameon=False, fontsize=8)
    plt.show()


# 04, does it matter.


def answers(by_scan: np.ndarray, by_chain: np.ndarray, at_random: float, data: float, error: float) -> None:
    """A risk difference by many orders of the Gibbs scan and of the chain rule, beside the data's own."""
    _, ax = plt.subplots(figsize=(9, 2.2), layout="constrained")
    ax.axvspan(data - error, data + error, color="#e6e6e6", lw=0)
    ax.axvline(data, color=GREY, lw=1)
    ax.text(data, 2.75, "data, ± one standard error", ha="center", fontsize=8, color=INK)
    jitter = np.random.default_rng(0).uniform(-0.25, 0.25, len(by_scan))
    ax.plot(at_random, 2, "D", color=BLUE, ms=7)
    ax.plot(by_scan, 1 + jitter, "o", color=RED, ms=4, alpha=0.7)
    ax.plot(by_chain, jitter, "o", color=GREEN, ms=4, alpha=0.7)
    names = ["Gibbs, random scan", f"Gibbs, {len(by_scan)} orders of the scan", f"chain rule, {len(by_chain)} orders"]
    ax.set_yticks([2, 1, 0], names)
    ax.set(ylim=(-0.6, 3.1), xlabel="P(bad course | obese) - P(bad course | normal weight)")
    plt.show()


def repairs(table: pd.DataFrame, data: float, error: float) -> None:
    """Gap, answers and gain of every repair; the columns are those of notebook 04."""
    _, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 2.9), sharey=True, layout="constrained")
    height = np.arange(len(table))
    left.barh(height, table["gap, nats"], 0.55, color=[RED, *[BLUE] * (len(table) - 2), GREY])
    for k, gap in enumerate(table["gap, nats"]):
        left.text(gap, k, f" {gap:.1e}" if gap < 0.005 else f" {gap:.3f}", va="center", fontsize=8)
    left.set(xlabel="mean rectangle gap, nats", xlim=(0, 1.3 * table["gap, nats"].max()))
    left.set_yticks(height, table.index)
    left.invert_yaxis()
    middle.axvspan(data - error, data + error, color="#e6e6e6", lw=0)
    middle.hlines(height, table["answer, lowest"], table["answer, highest"], color=RED, lw=4, alpha=0.6)
    middle.plot(table["answer, random scan"], height, "D", color=BLUE, ms=5)
    middle.set_xlabel("risk difference: orders of the scan (line),\nrandom scan (diamond), data (band)")
    right.axvline(0, color=GREY, lw=1)
    reach = np.abs(table[["gain, low", "gain, high"]].to_numpy().T - table["gain, nats"].to_numpy())
    right.errorbar(table["gain, nats"], height, xerr=reach, fmt="o", color=INK, ms=4)
    right.set_xlabel("held-out pseudo-log-likelihood,\ngain over the network, nats a patient")
    plt.show()


# 05, plans of videos.


def films(videos: Mapping[str, torch.Tensor], given: int) -> None:
    """One row of frames ``[frames, h, w, 3]`` a video; a line after the given ones."""
    _, axes = plt.subplots(len(videos), 1, figsize=(9.5, 4.1), dpi=72, layout="constrained")
    for ax, (name, video) in zip(axes, videos.items(), strict=True):
        frames = [np.pad(frame, ((0, 0), (1, 1), (0, 0)), constant_values=255) for frame in video.numpy()]
        ax.imshow(np.concatenate(frames, 1), interpolation="nearest")
        ax.axvline(given * frames[0].shape[1] - 0.5, color=RED, lw=2)
        ax.set_ylabel(name, rotation=0, ha="right", va="center")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    axes[0].set_title("given", loc="left", fontsize=10, color=RED)
    plt.show()


def differences(z: pd.DataFrame, p: pd.DataFrame) -> None:
    """Differences in standard errors, with the small p-values."""
    figure, ax = plt.subplots(figsize=(8.6, 2.7), layout="constrained")
    reach = float(min(6, z.abs().max(axis=None)))
    shown = ax.imshow(z, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto")

    def text(i: int, j: int) -> str:
        small = "\np < .002" if p.iloc[i, j] < 0.002 else f"\np = {p.iloc[i, j]:.2g}" if p.iloc[i, j] < 0.05 else ""
        return f"{z.iloc[i, j]:+.1f}{small}"

    numbers(ax, z.to_numpy(), text, 0.55 * reach)
    ax.set_xticks(range(z.shape[1]), [name.replace(", ", ",\n") for name in z.columns], fontsize=8)
    ax.set_yticks(range(len(z)), z.index)
    ax.spines[:].set_visible(False)
    ax.set_title("difference to 'all at once', in standard errors", fontsize=9, loc="left")
    figure.colorbar(shown, shrink=0.9)
    plt.show()


def frame_by_frame(spoilt: Mapping[str, torch.Tensor], change: Mapping[str, torch.Tensor], given: int) -> None:
    """Means over starts ``[starts, frames]`` with a band of one standard error; the real videos are dashed.

    Args:
        spoilt: probability that frames look spoilt, from frame `given` on.
        change: since the frame before, from frame 1 on.
        given: how many frames are given.
    """
    _, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.1), layout="constrained")
    for ax, series, first in ((left, spoilt, given), (right, change, 1)):
        for colour, (name, values) in zip((INK, BLUE, RED, GREEN), series.items(), strict=True):
            frames = range(first, first + values.shape[1])
            mean, error = values.mean(0), values.std(0) / len(values) ** 0.5
            ax.plot(frames, mean, "o--" if name == "real" else "o-", ms=3, color=colour, label=name)
            ax.fill_between(frames, mean - error, mean + error, color=colour, alpha=0.13, lw=0)
    left.set(xlabel="last frame of five", ylabel="looks spoilt, probability", ylim=(0, None))
    right.set(xlabel="frame", ylabel="change since the frame before,\ngrey levels", ylim=(0, None))
    right.axvspan(0.5, given - 0.5, color="#dddddd", lw=0, zorder=0)
    right.text(given / 2, 0.3, "given", ha="center", fontsize=8)
    left.legend(frameon=False, fontsize=8)
    plt.show()
