"""AntiBERTy where its package is installed, and the page on adapters, which runs without it too."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import flexgen as fg
from flexgen.adapters import antibodies
from flexgen.errors import FlexgenError
from flexgen.query import Query

PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"
installed = pytest.mark.skipif(find_spec("antiberty") is None, reason="the package antiberty is not installed")
FRAMEWORK = "EVQLVESGGGLVQPGGSLRLSCAASGFTFS"  # the first of human IGHV3 domains


def test_the_page_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        exec(compile("\n".join(blocks), str(PAGE), "exec"), names)
    assert names["mlm"].forwards.rows >= 1
    assert names["filled"].shape == (1, 120)
    (loop,) = names["mlm"].decode(names["result"].draws[-1][:1])
    trastuzumab = names["trastuzumab"]
    assert (loop[:98], loop[109:]) == (trastuzumab[:98], trastuzumab[109:])


@installed
def test_it_knows_antibodies(capfd: pytest.CaptureFixture[str]) -> None:
    mlm = fg.adapters.antiberty(num_sites=len(FRAMEWORK))
    assert capfd.readouterr() == ("", "")
    assert repr(mlm) == "MaskedLanguageModel(BertForMaskedLM, 30 sites, alphabet ACDEFGHIKLMNPQRSTVWY)"
    x = mlm.encode(FRAMEWORK)
    each = torch.eye(30, dtype=torch.bool)
    answers = mlm.marginals(x.expand(30, -1), Query(each, ~each))
    right = answers.mode().diagonal() == x[0]
    assert right.double().mean() > 0.9  # a twentieth by chance
    assert mlm.forwards.rows == 30
    # By hand, as the package's own runner prepares texts: letters apart, blanks as [MASK], special tokens left out.
    text = " ".join([*FRAMEWORK[:10], "[MASK]", *FRAMEWORK[11:]])
    with torch.no_grad():
        logits = mlm.model(**mlm.tokenizer(text, return_tensors="pt")).logits[0, 11].double()
    logits[mlm.tokenizer.all_special_ids] = -torch.inf
    expected = logits.log_softmax(-1)[mlm.tokenizer.convert_tokens_to_ids(list(fg.adapters.AMINO_ACIDS))]
    torch.testing.assert_close(answers.log_probs[10, 10], expected, atol=1e-4, rtol=0)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(antibodies, "find_spec", lambda name: None)  # noqa: ARG005
    with pytest.raises(FlexgenError, match=r"antiberty: is not installed. pip install"):
        fg.adapters.antiberty(num_sites=10)
