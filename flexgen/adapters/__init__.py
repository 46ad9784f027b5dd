"""Models of other packages as conditionals."""

from __future__ import annotations

from flexgen._lazy import lazily

# Public name -> module that holds it. Loaded on first use, since each needs its own extra.
_MODULE_OF: dict[str, str] = {
    "AMINO_ACIDS": "flexgen.adapters.antibodies",
    "ForwardCount": "flexgen.adapters.forward_passes",
    "MaskedLanguageModel": "flexgen.adapters.transformers_mlm",
    "TokenAlphabet": "flexgen.adapters.token_alphabet",
    "antiberty": "flexgen.adapters.antibodies",
}

__all__ = sorted(_MODULE_OF)

__getattr__, __dir__ = lazily(__name__, __all__, _MODULE_OF)
