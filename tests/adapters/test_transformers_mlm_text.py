"""Texts to codes and back, and models from folders and with adapters."""

from __future__ import annotations

import copy
import re
import socket
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from flexgen.adapters import MaskedLanguageModel, TokenAlphabet
from flexgen.errors import CheckpointError, DataError, FlexgenError
from flexgen.query import Query
from tests.adapters.tiny_mlm import SPECIAL, WORDS, network, tiny, tokenizer
from tests.conditionals import generator


def test_letters() -> None:
    mlm = tiny(4)
    x = mlm.encode(["ABCA", "C C B A"])
    assert x.tolist() == [[0, 1, 2, 0], [2, 2, 1, 0]]
    assert mlm.decode(x) == ["ABCA", "CCBA"]
    assert mlm.decode(x.double()) == ["ABCA", "CCBA"]
    assert mlm.encode("ABCA").tolist() == [[0, 1, 2, 0]]
    assert mlm.encode([]).shape == (0, 4)


def test_the_alphabet_numbers_the_codes() -> None:
    assert tiny(3, alphabet="CBA").encode("ABC").tolist() == [[2, 1, 0]]
    alphabet = TokenAlphabet(tokenizer(), "CBA")
    assert alphabet.ids.tolist() == [7, 6, 5]
    assert (alphabet.before, alphabet.after) == ((2,), (3,))
    assert (alphabet.mask_id, alphabet.pad_id, len(alphabet)) == (4, 0, 3)
    assert repr(alphabet) == "CBA"


def test_blanks_are_what_a_query_asks_for() -> None:
    mlm = tiny(5, variable_length=True)
    x, query = mlm.encode_query(["A_C", "_B__A"])
    assert query == Query(
        torch.tensor([[0, 1, 0, 0, 0], [1, 0, 1, 1, 0]]).bool(), torch.tensor([[1, 0, 1, 1, 1], [0, 1, 0, 0, 1]]).bool()
    )
    assert x[query.observed].tolist() == [0, 2, 3, 3, 1, 0]
    filled = mlm.decode(mlm.sample(x, query, generator=generator()))
    assert [len(text) for text in filled] == [3, 5]
    assert (filled[0][0], filled[0][2], filled[1][1], filled[1][4]) == ("A", "C", "B", "A")


def test_texts_of_different_lengths() -> None:
    mlm = tiny(2)
    assert mlm.sized_for(["AB", "BA"]).space == mlm.space
    wider = mlm.sized_for(["AB", "BACC", "C"])
    assert wider.variable_length
    assert wider.num_sites == 4
    x = wider.encode(["AB", "BACC", "C"])
    assert x.tolist() == [[0, 1, 3, 3], [1, 0, 2, 2], [2, 3, 3, 3]]
    assert wider.decode(x) == ["AB", "BACC", "C"]
    assert wider.absent(x).sum(-1).tolist() == [2, 0, 3]
    observed = torch.tensor([True, False, False, False])
    assert wider.rest(x, observed).target.tolist() == [
        [False, True, False, False],
        [False, True, True, True],
        [False] * 4,
    ]
    assert not mlm.absent(torch.tensor([[3, 3]])).any()


def test_tokens_that_are_words() -> None:
    cut = tokenizer(WORDS)
    model = network(vocabulary_size=len(SPECIAL) + len(WORDS))
    mlm = MaskedLanguageModel(model, cut, num_sites=4)
    x = mlm.encode("the dogs sat")
    assert x.tolist() == [[0, 3, 4, 5]]
    assert mlm.decode(x) == ["the dogs sat"]
    x, query = mlm.encode_query("the [MASK] [MASK] sat")
    assert query.target.tolist() == [[False, True, True, False]]
    nouns = MaskedLanguageModel(model, cut, num_sites=2, alphabet=["dog", "cat"])
    assert nouns.encode("cat dog").tolist() == [[1, 0]]
    assert repr(nouns).endswith("alphabet dog cat)")


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        (["ABCA", "ABXA"], r"texts\[1\]: holds 'X' at place 2, outside the alphabet ABC. Leave it open with '_'"),
        (["abca"], r"texts\[0\]: holds 'a' at place 0, outside the alphabet ABC. Write it in capitals"),
        (["ABC"], r"texts\[0\]: has 3 tokens, the model's rows 4. Use sized_for"),
        (["AB_A"], r"texts\[0\]: has a blank at place 2. Use encode_query"),
        ([3], r"texts\[0\]: is 3. Pass strings"),
    ],
)
def test_texts_that_are_none_of_the_model(texts: list[Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        tiny(4).encode(texts)


def test_models_from_a_folder(tmp_path: Path) -> None:
    network().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    mlm = MaskedLanguageModel.from_pretrained(tmp_path, num_sites=4, alphabet="ABC", dtype=torch.float64)
    x, query = mlm.encode_query(["A__B", "_ABC"])
    found, expected = (model.marginals(x, query).log_probs for model in (mlm, tiny(4)))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    single = MaskedLanguageModel.from_pretrained(tmp_path, num_sites=4, alphabet="ABC", local_files_only=True)
    assert next(single.model.parameters()).dtype == torch.float32
    torch.testing.assert_close(single.marginals(x, query).log_probs, expected, atol=1e-4, rtol=0)


def test_a_folder_without_a_head_is_refused(tmp_path: Path) -> None:
    network().bert.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"lacks \d+ weights of BertForMaskedLM, such as 'cls"):
        MaskedLanguageModel.from_pretrained(tmp_path, num_sites=4)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("GPT2LMHeadModel", "is GPT2LMHeadModel, a causal language model: it predicts a token from those before it"),
        ("T5ForConditionalGeneration", "is T5ForConditionalGeneration, which writes one sequence given another"),
        ("BertForMaskedLM", "is BertForMaskedLM with config.is_decoder=True: a token would be predicted from those"),
    ],
)
def test_models_of_another_kind_are_refused(tmp_path: Path, model: str, reason: str) -> None:
    own = {
        "GPT2LMHeadModel": {"n_embd": 16, "n_layer": 1, "n_head": 2},
        "T5ForConditionalGeneration": {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2},
        "BertForMaskedLM": {"is_decoder": True, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    }[model]
    kind = getattr(transformers, model)
    with torch.random.fork_rng(devices=[]):
        other = kind(kind.config_class(vocab_size=10, **own))
    with pytest.raises(FlexgenError, match=f"^model: {re.escape(reason)}"):
        MaskedLanguageModel(other, tokenizer(), num_sites=4, alphabet="ABC")
    if model != "BertForMaskedLM":
        other.save_pretrained(tmp_path)
        tokenizer().save_pretrained(tmp_path)
        said = (
            "cannot be loaded as a masked language model: Unrecognized configuration class .*Config.*AutoModelForMasked"
        )
        with pytest.raises(CheckpointError, match=said) as caught:
            MaskedLanguageModel.from_pretrained(tmp_path, num_sites=4)
        assert len(str(caught.value)) < 600


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_a_causal_model_below_adapters_is_refused() -> None:
    with torch.random.fork_rng(devices=[]):
        config = transformers.GPT2Config(vocab_size=10, n_embd=16, n_layer=1, n_head=2)
        model = peft.get_peft_model(
            transformers.GPT2LMHeadModel(config), peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
        )
    with pytest.raises(FlexgenError, match=r"^model: is GPT2LMHeadModel, a causal language model"):
        MaskedLanguageModel(model, tokenizer(), num_sites=4, alphabet="ABC")


def test_folders_that_hold_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^name_or_path: '.*missing' does not exist\. Name a folder"):
        MaskedLanguageModel.from_pretrained(tmp_path / "missing", num_sites=4)
    with pytest.raises(CheckpointError, match=r"^name_or_path: '\./missing' does not exist"):
        MaskedLanguageModel.from_pretrained("./missing", num_sites=4)
    with pytest.raises(CheckpointError, match=r"^name_or_path: '.*' cannot be loaded as a masked language model: "):
        MaskedLanguageModel.from_pretrained(tmp_path, num_sites=4)
    with pytest.raises(CheckpointError, match=r"^name_or_path: is 3\. Pass a folder or a name of the hub"):
        MaskedLanguageModel.from_pretrained(3, num_sites=4)
    network().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match=r"^name_or_path: '.*' cannot be loaded as a masked language model: "):
        MaskedLanguageModel.from_pretrained(tmp_path, num_sites=4)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hosts that are looked for, none of which is there."""
    hosts: list[str] = []

    def nowhere(host: str, *_: Any, **__: Any) -> Any:
        hosts.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    return hosts


def test_a_hub_out_of_reach_is_said_at_once(tmp_path: Path, asked: list[str]) -> None:
    said = r"^name_or_path: 'some/model' is neither a folder nor in the cache, and the hub is out of reach \(.*\)\. "
    with pytest.raises(CheckpointError, match=said):
        MaskedLanguageModel.from_pretrained("some/model", num_sites=4, cache_dir=tmp_path)
    assert 1 <= len(asked) <= 2  # one request; its client may look the host up twice
    before = len(asked)
    with pytest.raises(CheckpointError, match=r"and the hub is not asked: local_files_only=True\. Name a folder, or"):
        MaskedLanguageModel.from_pretrained("some/model", num_sites=4, cache_dir=tmp_path, local_files_only=True)
    assert len(asked) == before


@pytest.mark.parametrize("options", [{}, {"local_files_only": True}, {"revision": "main"}])
def test_without_the_hub_its_cache_serves(tmp_path: Path, asked: list[str], options: dict[str, Any]) -> None:
    snapshot = tmp_path / "models--some--model" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    network().save_pretrained(snapshot)
    tokenizer().save_pretrained(snapshot)
    (tmp_path / "models--some--model" / "refs").mkdir()
    (tmp_path / "models--some--model" / "refs" / "main").write_text("0" * 40)
    mlm = MaskedLanguageModel.from_pretrained("some/model", num_sites=4, alphabet="ABC", cache_dir=tmp_path, **options)
    assert mlm.decode(mlm.encode("ABCA")) == ["ABCA"]
    assert len(asked) <= (0 if options.get("local_files_only") else 2)


def adapted() -> Any:
    """A copy of the network with low-rank updates that are not zero."""
    config = peft.LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return peft.get_peft_model(copy.deepcopy(network()), config)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_models_with_low_rank_adapters(tmp_path: Path) -> None:
    model = adapted()
    mlm = MaskedLanguageModel(model, tokenizer(), num_sites=4, alphabet="ABC")
    assert repr(mlm).startswith("MaskedLanguageModel(BertForMaskedLM, 4 sites")
    x, query = mlm.encode_query(["A__B", "_ABC"])
    found = mlm.marginals(x, query).log_probs
    assert (found - tiny(4).marginals(x, query).log_probs).abs().max() > 0.01
    with model.disable_adapter():
        torch.testing.assert_close(mlm.marginals(x, query).log_probs, tiny(4).marginals(x, query).log_probs)
    differentiable = MaskedLanguageModel(model, tokenizer(), num_sites=4, alphabet="ABC", differentiable=True)
    differentiable.log_prob(x, query).sum().backward()
    trained = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert trained
    assert all("lora_" in name for name in trained)

    # From the folder of the adapters alone, which names that of the network.
    network().save_pretrained(tmp_path / "network")
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "network")
    model.save_pretrained(tmp_path / "adapters")
    tokenizer().save_pretrained(tmp_path / "adapters")
    loaded = MaskedLanguageModel.from_pretrained(
        tmp_path / "adapters", num_sites=4, alphabet="ABC", dtype=torch.float64
    )
    torch.testing.assert_close(loaded.marginals(x, query).log_probs, found, atol=1e-6, rtol=0)

    merged = MaskedLanguageModel(model.merge_and_unload(), tokenizer(), num_sites=4, alphabet="ABC")
    torch.testing.assert_close(merged.marginals(x, query).log_probs, found, atol=1e-10, rtol=0)


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        FlexgenError, match=r"transformers: is not installed. pip install 'flexgen-samplers\[transformers"
    ):
        MaskedLanguageModel.from_pretrained("folder", num_sites=4)
