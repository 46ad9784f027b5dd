"""Every law, over 36 sites, with what its draw takes besides the entries present."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flexgen.laws import MaskLaw
from samplers import frames, laws

NUM_SITES = 36
GRID = (6, 6)
WORDS = torch.tensor([-1, *(i // 2 for i in range(NUM_SITES - 2)), -1])  # ends belong to no word
HALVES = (range(NUM_SITES // 2), range(NUM_SITES // 2, NUM_SITES))


def values(num_rows: int = 64, seed: int = 3) -> Tensor:
    return torch.randn(num_rows, NUM_SITES, generator=torch.Generator().manual_seed(seed))


LAWS: dict[str, MaskLaw] = {
    "any_order": laws.any_order(),
    "power_cardinality": laws.power_cardinality(),
    "power_likelihood": laws.power_cardinality(2.0, "likelihood"),
    "mac": laws.mac(),
    "vaeac_tables": laws.vaeac_tables(),
    "simformer": laws.simformer(),
    "simformer_tasks": laws.simformer_tasks(*HALVES),
    "bert": laws.bert(),
    "whole_word_bert": laws.whole_word_bert(),
    "span_bert": laws.span_bert(),
    "t5": laws.t5(),
    "ul2": laws.ul2(),
    "xlnet": laws.xlnet(),
    "causal": laws.causal(),
    "mdlm": laws.mdlm(),
    "mae": laws.mae(),
    "sim_mim": laws.sim_mim(GRID, (2, 2)),
    "video_mae": laws.video_mae((4, 3, 3)),
    "beit": laws.beit(GRID, 14),
    "beit_small_blocks": laws.Blocks(GRID, 14, min_area=3),
    "maskgit": laws.maskgit(),
    "mage": laws.mage(),
    "vaeac_images": laws.vaeac_images(GRID),
    "fdm": laws.fdm(8),
    "plan_windows": laws.PlanWindows([frames.hierarchical(40, 8, 8, 3), frames.tree(30, 4, 8)], [0.3, 0.7]),
    "mar": laws.LogisticMissing.mar(
        values(512), drivers=HALVES[0], rate=0.3, generator=torch.Generator().manual_seed(0)
    ),
    "mnar": laws.LogisticMissing.mnar(values(512), rate=0.3),
    "quantile": laws.QuantileMissing.fit(values(512), drivers=range(NUM_SITES), quantile=0.7, rate=0.5),
    "strided": laws.Strided(5),
    "given": laws.Given(target=[3, 1], observed=[0, 7]),
    "prefix_random": laws.Prefix(laws.UniformSize(0, leave=1), ahead=2, order="random"),
    "prefix_order": laws.Prefix(0.5, order=tuple(reversed(range(NUM_SITES)))),
    "product": laws.Product([(HALVES[0], laws.mae()), (HALVES[1], laws.simformer())]),
    "pattern": laws.Pattern(GRID, resolution=0.4),
}

# Laws that promise a target in every row that holds an entry.
NEVER_EMPTY = (
    "any_order",
    "power_cardinality",
    "power_likelihood",
    "mac",
    "simformer",
    "span_bert",
    "t5",
    "causal",
    "mae",
    "maskgit",
    "mage",
    "fdm",
    "prefix_random",
)


def extras(name: str, x: Tensor) -> dict[str, Any]:
    """Arguments of the draw: words or values for the laws that need them."""
    if name in ("whole_word_bert", "span_bert"):
        return {"groups": WORDS.expand(len(x), -1)}
    return {"x": x} if name in ("mar", "mnar", "quantile") else {}
