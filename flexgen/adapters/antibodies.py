"""AntiBERTy, a masked language model of antibodies, from the installed package's own files."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

from flexgen.adapters.transformers_mlm import MaskedLanguageModel, import_transformers
from flexgen.errors import FlexgenError

__all__ = ["AMINO_ACIDS", "antiberty"]

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"


def antiberty(
    *,
    num_sites: int,
    variable_length: bool = False,
    max_tokens: int = 8192,
    differentiable: bool = False,
    dtype: torch.dtype = torch.float32,
) -> MaskedLanguageModel:
    """AntiBERTy over the 20 amino acids: a BERT of 8 layers, width 512, trained on 558 million antibody sequences.

    The weights are those of the package ``antiberty`` 0.1.3, which must be installed and whose licence applies to them;
    none of its code runs. Arguments as in `MaskedLanguageModel`.

    Source: Ruffolo, Gray & Sulam (2021), *Deciphering antibody affinity maturation with language models and weakly
    supervised learning*.

    Raises:
        FlexgenError: the package is not installed.
    """
    package = find_spec("antiberty")  # not imported: its code is of an older transformers
    if package is None or not package.submodule_search_locations:
        raise FlexgenError("antiberty", "is not installed", "pip install 'flexgen-samplers[antiberty]'.")
    files = Path(package.submodule_search_locations[0]) / "trained_models"
    transformers = import_transformers()
    vocabulary = (files / "vocab.txt").read_text(encoding="utf-8").split()
    tokenizer = transformers.BertTokenizer(
        vocab={token: number for number, token in enumerate(vocabulary)}, do_lower_case=False
    )
    logging, verbosity = transformers.utils.logging, transformers.utils.logging.get_verbosity()
    progress_bar = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # its heads for species, chain and grafting are not read, and would be reported
    logging.disable_progress_bar()
    try:
        model = transformers.BertForMaskedLM.from_pretrained(
            files / "AntiBERTy_md_smooth", dtype=dtype, local_files_only=True
        )
    finally:
        logging.set_verbosity(verbosity)
        if progress_bar:
            logging.enable_progress_bar()
    return MaskedLanguageModel(
        model,
        tokenizer,
        num_sites=num_sites,
        alphabet=AMINO_ACIDS,
        variable_length=variable_length,
        max_tokens=max_tokens,
        differentiable=differentiable,
    )
