"""Pictures of a report: which pairs disagree, how the two directions compare, how much orders and scans matter."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from flexgen.plots import REAL, SAMPLED, Picture

if TYPE_CHECKING:
    from flexgen.compatibility.networks.effects import Effect
    from flexgen.compatibility.networks.report import Report

__all__ = ["plot_report"]

_MOST_NAMES = 24
_MOST_POINTS = 4000


def plot_report(report: Report) -> Figure:
    """The panels for which there is something to show, two a row."""
    panels = []
    if "rectangle gap" in report.effects:
        panels.append(_heat_map)
    if len(report.directions.get("forward", ())):
        panels.append(_directions)
    if "order gap" in report.effects:
        panels.append(_order_gaps)
    if "block scan divergence" in report.effects:
        panels.append(_scans)
    columns = min(len(panels), 2) or 1
    lines = math.ceil(len(panels) / 2) or 1
    figure = Picture(figsize=(5.2 * columns, 4.3 * lines + 0.4), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax, panel in zip(axes, panels, strict=False):
        panel(ax, report)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    figure.suptitle(f"{report.model}: {report.verdict}", fontsize=12, x=0.01, ha="left")
    return figure


def _heat_map(ax: Axes, report: Report) -> None:
    """Mean gap of every pair of sites that were examined; hatched where a pair was not looked at."""
    effect = report.effects["rectangle gap"]
    frame = effect.by_sites()
    paired = frame[["site_0", "site_1"]].to_numpy()
    examined = [other.sites.unique().numpy() for other in report.effects.values() if other.sites.shape[1]]  # type: ignore[no-untyped-call]
    sites = np.unique(np.concatenate([paired.ravel(), *examined]))
    place = {site: k for k, site in enumerate(sites)}
    table = np.full((len(sites), len(sites)), np.nan)
    for i, j, value in frame[["site_0", "site_1", "weighted"]].itertuples(index=False):
        table[place[i], place[j]] = table[place[j], place[i]] = value
    unseen = np.isnan(table) & ~np.eye(len(sites), dtype=bool)
    ax.set_facecolor("white")
    if unseen.any():
        ax.pcolor(
            np.arange(len(sites) + 1) - 0.5,
            np.arange(len(sites) + 1) - 0.5,
            np.ma.masked_where(~unseen, np.zeros_like(table)),
            cmap="Greys",
            vmin=0.0,
            vmax=1.0,
            hatch="////",
            edgecolor="#bbbbbb",
            lw=0,
        )
        ax.legend(
            handles=[Patch(facecolor="white", edgecolor="#bbbbbb", hatch="////", label="not examined")],
            loc="lower left",
            bbox_to_anchor=(1.02, -0.02),
            frameon=False,
            fontsize=7,
        )
    # What rounding explains is pale: the scale reaches the floor at least.
    top = max(float(np.nanmax(table)), float(frame["floor"].max())) or 1.0
    shown = ax.imshow(table, cmap="magma_r", vmin=0.0, vmax=top)
    bar = ax.figure.colorbar(shown, ax=ax, shrink=0.85)
    bar.ax.tick_params(labelsize=7)
    bar.set_label("mean |gap|, nats", fontsize=8)
    if report.margin is not None and report.margin < top:
        bar.ax.axhline(report.margin, color="#1b7f4b", lw=2)
        bar.ax.text(-0.15, report.margin, "margin", color="#1b7f4b", fontsize=7, ha="right", va="center")
    if len(sites) <= _MOST_NAMES:
        names = [_short(report.names[site]) for site in sites]
        ax.set_xticks(range(len(sites)), names, rotation=90, fontsize=7)
        ax.set_yticks(range(len(sites)), names, fontsize=7)
    else:
        ax.tick_params(labelsize=7)
        ax.set_xlabel("site", fontsize=8)
    ax.set_title("interaction gap of pairs, by probability", fontsize=9, loc="left")


def _directions(ax: Axes, report: Report) -> None:
    """Each rectangle's log cross-ratio from the one direction against that from the other."""
    one, other = (np.asarray(report.directions[name]) for name in ("forward", "backward"))
    finite = np.isfinite(one) & np.isfinite(other)
    one, other = one[finite], other[finite]
    if len(one) > _MOST_POINTS:
        chosen = np.random.default_rng(0).choice(len(one), _MOST_POINTS, replace=False)
        one, other = one[chosen], other[chosen]
    both = np.concatenate([one, other])
    reach = 1.05 * float(np.percentile(np.abs(both), 99.5)) if len(both) else 1.0
    reach = reach or 1.0
    ax.plot([-reach, reach], [-reach, reach], color="#999999", lw=1, zorder=0)
    size, alpha = (3, 0.3) if len(one) > 500 else (5, 0.6)
    ax.plot(one, other, ".", color=SAMPLED, ms=size, alpha=alpha, mew=0, rasterized=True)
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    ax.set_xlabel("log cross-ratio from p(i | j), nats", fontsize=8)
    ax.set_ylabel("log cross-ratio from p(j | i), nats", fontsize=8)
    ax.tick_params(labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title("the two directions; a joint puts all on the line", fontsize=9, loc="left")


def _order_gaps(ax: Axes, report: Report) -> None:
    effect = report.effects["order gap"]
    _histogram(ax, effect, report)
    ax.set_xlabel("|log p by one order - by another|, nats a row", fontsize=8)
    ax.set_title("order gap of the chain rule", fontsize=9, loc="left")


def _scans(ax: Axes, report: Report) -> None:
    effect = report.effects["block scan divergence"]
    _histogram(ax, effect, report)
    ax.set_xlabel("total variation between laws of two scan orders", fontsize=8)
    ax.set_title("do Gibbs scans of a block agree?", fontsize=9, loc="left")


def _histogram(ax: Axes, effect: Effect, report: Report) -> None:
    sizes = effect.values[effect.values.isfinite()].abs().numpy()
    estimate = effect.weighted(level=report.level)
    top = float(np.percentile(sizes, 99)) if len(sizes) else 1.0
    top = 1.05 * max(top, estimate.value if math.isfinite(estimate.value) else 0.0) or 1.0
    ax.hist(sizes.clip(max=top), bins=np.linspace(0, top, 31).tolist(), color=REAL, alpha=0.4)
    ax.axvline(estimate.value, color=SAMPLED, lw=1.5, label="mean, with its interval")
    ax.axvspan(estimate.low, estimate.high, color=SAMPLED, alpha=0.2, lw=0)
    marks = [("floor of rounding", estimate.floor, "#3a7ca5", "--")]
    if report.margin is not None and effect.unit == "nats":
        marks.append(("margin", report.margin, "#1b7f4b", ":"))
    for name, where, colour, style in marks:
        if where <= 0.003 * top:
            continue
        if where <= 1.5 * top:
            ax.axvline(where, color=colour, lw=1.5, ls=style, label=name)
            top = max(top, 1.05 * where)
        else:  # so far out that the data would be a sliver
            ax.plot([], [], color=colour, lw=1.5, ls=style, label=f"{name}: {where:.2g}, beyond the axis")
    ax.set_xlim(0, top)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)  # hides nothing
    ax.set_ylabel("blocks" if effect.unit != "nats" else "pairs of orders", fontsize=8)
    ax.tick_params(labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)


def _short(text: str, most: int = 14) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
