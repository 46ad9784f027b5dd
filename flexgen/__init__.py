"""flexgen: models of p(x_P | x_C) for arbitrary index sets, and one toolkit to train, sample and check them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flexgen._lazy import lazily

if TYPE_CHECKING:
    from flexgen import adapters as adapters
    from flexgen import compatibility as compatibility
    from flexgen import energy as energy
    from flexgen import exact as exact
    from flexgen.conditional import CanSample as CanSample
    from flexgen.conditional import Conditional as Conditional
    from flexgen.conditional import HasLogProb as HasLogProb
    from flexgen.conditional import HasMarginals as HasMarginals
    from flexgen.diagnosis import diagnose as diagnose
    from flexgen.laws import MaskDraw as MaskDraw
    from flexgen.laws import MaskLaw as MaskLaw
    from flexgen.query import Query as Query
    from flexgen.space import Site as Site
    from flexgen.space import Space as Space
    from flexgen.table_model import TableModel as TableModel
    from flexgen.tables.settings import TableSettings as TableSettings
    from flexgen.video_pipeline import VideoPipeline as VideoPipeline

__version__ = "0.1.0"

# Public name -> module that holds it. Loaded on first use (PEP 562), so that `import samplers` stays light.
_MODULE_OF = {
    "CanSample": "flexgen.conditional",
    "Conditional": "flexgen.conditional",
    "HasLogProb": "flexgen.conditional",
    "HasMarginals": "flexgen.conditional",
    "MaskDraw": "flexgen.laws",
    "MaskLaw": "flexgen.laws",
    "Query": "flexgen.query",
    "Site": "flexgen.space",
    "Space": "flexgen.space",
    "TableModel": "flexgen.table_model",
    "TableSettings": "flexgen.tables.settings",
    "VideoPipeline": "flexgen.video_pipeline",
    "diagnose": "flexgen.diagnosis",
}
_SUBMODULES = frozenset(
    {
        "adapters",
        "compatibility",
        "energy",
        "exact",
        "networks",
        "training",
        "tables",
        "data",
        "metrics",
        "plots",
        "rng",
        "errors",
        "video",
    }
)

__all__ = ["__version__", *sorted(_MODULE_OF), *sorted(_SUBMODULES)]

__getattr__, __dir__ = lazily(__name__, __all__, _MODULE_OF)
