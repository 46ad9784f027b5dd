"""A language model's answers take memory for the sites that are named, not for the whole row."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("transformers")
from flexgen.adapters import MaskedLanguageModel
from flexgen.conditional import marginals_at
from flexgen.query import Query
from tests.adapters.tiny_mlm import network, tokenizer

NUM_ROWS, NUM_SITES, VOCABULARY = 32, 510, 30_522  # 512 tokens with the special ones
LOGITS = 512 * VOCABULARY * 4  # bytes of the network's own logits of one row


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made under this mode held at once; the network's logits are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.users: dict[int, int] = {}
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() != LOGITS:
                self._enter(tensor)
        return out

    def _enter(self, tensor: torch.Tensor) -> None:
        place, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        self.users[place] = self.users.get(place, 0) + 1
        if self.users[place] == 1:
            self.live += size
            self.peak = max(self.peak, self.live)
        weakref.finalize(tensor, self._leave, place, size)

    def _leave(self, place: int, size: int) -> None:
        self.users[place] -= 1
        if not self.users[place]:
            self.live -= size


def test_one_site_of_a_large_vocabulary_takes_little_memory() -> None:
    cut = tokenizer([f"word{number}" for number in range(VOCABULARY - 5)])
    model = network(vocabulary_size=VOCABULARY, max_length=512).float()
    mlm = MaskedLanguageModel(model, cut, num_sites=NUM_SITES, max_tokens=512)
    x = torch.randint(len(mlm.alphabet), (NUM_ROWS, NUM_SITES), generator=torch.Generator().manual_seed(0))
    observed = torch.rand(NUM_ROWS, NUM_SITES, generator=torch.Generator().manual_seed(1)) < 0.5
    observed[:, 7] = False
    with LiveBytes() as memory:
        answer = marginals_at(mlm, x, Query.rest(observed), torch.tensor([7]))
    assert answer.log_prob(x[:, 7:8]).shape == (NUM_ROWS, 1)
    answers = NUM_ROWS * len(mlm.alphabet) * 8
    assert memory.peak > 2 * answers  # the meter sees what there must be: logits in two types
    assert memory.peak < 300 << 20
