"""Tiny masked language models with random weights, and what they answer when they are asked by hand."""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers
from torch import Tensor

from flexgen.adapters import MaskedLanguageModel
from flexgen.query import Query

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "ABCDE"
WORDS = ["the", "cat", "cats", "dog", "##s", "sat"]


def tokenizer(tokens: Any = LETTERS) -> Any:
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *tokens])}
    return transformers.BertTokenizer(vocab=vocabulary, do_lower_case=False)


@functools.cache
def network(
    kind: str = "Bert", *, vocabulary_size: int = 10, max_length: int = 24, seed: int = 2, dropout: float = 0.1
) -> Any:
    """Two layers of width 16, whose large random weights make answers far from uniform; float64."""
    common = {
        "vocab_size": vocabulary_size,
        "max_position_embeddings": max_length,
        "initializer_range": 0.5,
        "pad_token_id": 0,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "hidden_dropout_prob": dropout,
    }
    own = {
        "Esm": {"mask_token_id": 4, "token_dropout": True, "position_embedding_type": "rotary"},
        "DistilBert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "dropout": dropout},
    }
    config = getattr(transformers, f"{kind}Config")(**{**common, **own.get(kind, {})})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, f"{kind}ForMaskedLM")(config)
    return model.double().eval()


def tiny(num_sites: int, *, alphabet: str | None = LETTERS[:3], **options: Any) -> MaskedLanguageModel:
    return MaskedLanguageModel(network(), tokenizer(), num_sites=num_sites, alphabet=alphabet, **options)


def by_hand(model: Any, x: Tensor, query: Query, *, alphabet: str = LETTERS[:3], lengths: list[int]) -> Tensor:
    """log p(x_i | x_C) ``[B, N, K]`` where not observed, row after row, each without padding; NaN elsewhere."""
    cut = tokenizer()
    columns = cut.convert_tokens_to_ids(list(alphabet))
    query = query.expand(len(x))
    answers = torch.full((*x.shape, len(alphabet)), torch.nan, dtype=torch.float64)
    for row, length in enumerate(lengths):
        observed = query.observed[row].tolist()
        words = [alphabet[int(x[row, i])] if observed[i] else "[MASK]" for i in range(length)]
        with torch.no_grad():
            logits = model(**cut(" ".join(words), return_tensors="pt")).logits[0, 1:-1, columns]
        for site in range(length):
            if not observed[site]:
                answers[row, site] = logits[site].log_softmax(-1)
    return answers
