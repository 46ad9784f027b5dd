"""Masked language models of Hugging Face transformers as conditionals."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from flexgen.adapters.forward_passes import ForwardCount, logits_at
from flexgen.adapters.token_alphabet import BLANK, TokenAlphabet
from flexgen.checks import kind_of, whole_number
from flexgen.conditional import CategoricalMarginals, MarginalConditional
from flexgen.errors import CheckpointError, DataError, FlexgenError, QueryError, SpaceError
from flexgen.query import Query
from flexgen.space import Space

__all__ = ["MaskedLanguageModel", "import_transformers"]

_UNLIMITED = 1 << 30  # transformers writes 1e30 where a tokenizer knows no limit


class MaskedLanguageModel(nn.Module, MarginalConditional):
    """p(x_P | x_C) of token sequences by a masked language model: any ``AutoModelForMaskedLM``.

    A site is a token between the special tokens, x ``[B, N]`` its code in the alphabet. Observed sites keep their
    tokens, all others are masked; the answer at a site is the network's softmax *restricted to the alphabet*, that is
    p(x_i | x_C, x_i in the alphabet). Joint answers follow by the chain rule. Nothing makes these conditionals share a
    joint: the package's samplers and diagnostics are there for what follows from that.

    Args:
        model: ``(input_ids, attention_mask)`` to ``.logits``; a model with adapters of peft will do. It is run in
            evaluation mode, and computes in its own type on its own device; x may live on another.
        tokenizer: the model's.
        num_sites: N, tokens of a row without special tokens.
        alphabet: tokens that a site may hold, spelt as in the vocabulary, such as ``"ACDEFGHIKLMNPQRSTVWY"``; default:
            the whole vocabulary without special tokens.
        variable_length: rows may end before site N. A site behind a row's end is *absent*: it is observed, and its
            code is `absent_code`, K, one more category, which no unobserved site ever takes, since the network is
            evaluated on rows of a known length. An unobserved site is always within its row, masked.
        max_tokens: tokens of a forward pass through the network, its batch size; at least one row is taken.
        differentiable: let answers carry gradients to the model's parameters.

    Raises:
        FlexgenError: a model of transformers that reads from left to right, or writes one sequence after another; an
            alphabet or a length that the model cannot serve.

    Answers are float64 logarithms of float32 logits; rows without a target are not evaluated.
    Cost: one forward pass for every distinct row of a call, counted in `forwards`.

    >>> mlm = MaskedLanguageModel.from_pretrained("bert-base-cased", num_sites=12)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        num_sites: int,
        alphabet: Sequence[str] | None = None,
        variable_length: bool = False,
        max_tokens: int = 8192,
        differentiable: bool = False,
    ) -> None:
        super().__init__()
        _require_masked(model)
        self.model = model
        self.tokenizer = tokenizer
        self.alphabet = TokenAlphabet(tokenizer, alphabet)
        self.max_tokens = whole_number("max_tokens", max_tokens, 1)
        self.differentiable = differentiable
        self.forwards = ForwardCount()
        self.training = False  # answers are those of evaluation mode, whatever the mode of the model itself
        self._vocabulary_size = int(getattr(getattr(model, "config", None), "vocab_size", 0)) or len(tokenizer)
        outside = [
            token
            for token, i in zip(self.alphabet.symbols, self.alphabet.ids, strict=True)
            if i >= self._vocabulary_size
        ]
        if outside:
            raise FlexgenError(
                "alphabet",
                f"holds {outside[0]!r}, for which the model has no logit (its vocabulary has {self._vocabulary_size})",
                "Leave it out, or resize the model's embeddings and train them.",
            )
        self._resize(num_sites, variable_length)

    def _resize(self, num_sites: int, variable_length: bool) -> None:
        num_sites, most = whole_number("num_sites", num_sites, 1), self._most_sites()
        if num_sites > most:
            raise FlexgenError("num_sites", f"is {num_sites}", f"This model reads at most {most} tokens of a row.")
        self.variable_length = variable_length
        self._space = Space.categorical([len(self.alphabet) + variable_length] * num_sites)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: Any,
        *,
        num_sites: int,
        alphabet: Sequence[str] | None = None,
        variable_length: bool = False,
        max_tokens: int = 8192,
        differentiable: bool = False,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> MaskedLanguageModel:
        """A model and its tokenizer from a folder or the hub; without the hub, from its cache.

        Args:
            name_or_path: what transformers' ``from_pretrained`` takes.
            dtype: of the network. Rounding is what limits diagnostics: prefer float32, or float64 where it matters.
            options: for ``AutoModelForMaskedLM.from_pretrained``, such as ``revision`` or ``attn_implementation``.

        Raises:
            CheckpointError: no such folder, or nothing of that name within reach; a model of another kind, such as
                GPT-2 or T5; weights are missing, such as the whole head of a model trained for another task, which
                transformers would fill with random numbers.
        """
        transformers = import_transformers()
        source = _folder_or_hub(name_or_path, options)
        shared = {name: options[name] for name in ("revision", "cache_dir", "local_files_only") if name in options}
        try:
            model, loaded = transformers.AutoModelForMaskedLM.from_pretrained(
                source, dtype=dtype, output_loading_info=True, **options
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **shared)
        except (OSError, ValueError, SafetensorError) as error:
            reason = " ".join(str(error).split()).partition(" Model type should be one of")[0][:300].rstrip(".")
            problem = f"{str(name_or_path)!r} cannot be loaded as a masked language model: {reason}"
            fix = "Name a folder or a model of the hub that AutoModelForMaskedLM loads."
            raise CheckpointError("name_or_path", problem, fix) from error
        missing = sorted(loaded["missing_keys"])
        if missing:
            raise CheckpointError(
                "name_or_path",
                f"{str(name_or_path)!r} lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]!r}",
                "Name a model that was trained to fill masks, with its head.",
            )
        return cls(
            model,
            tokenizer,
            num_sites=num_sites,
            alphabet=alphabet,
            variable_length=variable_length,
            max_tokens=max_tokens,
            differentiable=differentiable,
        )

    def resized(self, num_sites: int, *, variable_length: bool = False) -> MaskedLanguageModel:
        """The same network for rows of another length; `forwards` is shared."""
        other = copy.copy(self)
        other._resize(num_sites, variable_length)
        return other

    def sized_for(self, texts: Sequence[str]) -> MaskedLanguageModel:
        """`resized` for the longest of some texts; with variable length if the others are shorter."""
        lengths = [len(codes) for codes in self.alphabet.encode(_texts(texts))]
        longest = max(lengths, default=0)
        return self.resized(longest, variable_length=min(lengths, default=0) < longest)

    @property
    def space(self) -> Space:
        return self._space

    @property
    def num_sites(self) -> int:
        return self._space.num_sites

    @property
    def absent_code(self) -> int:
        """The code of a site behind its row's end, K, where lengths are variable."""
        if not self.variable_length:
            problem = f"is of a model whose rows all have {self.num_sites} tokens"
            raise FlexgenError("absent_code", problem, "Say variable_length=True.")
        return len(self.alphabet)

    # Strings.

    def encode(self, texts: str | Sequence[str]) -> Tensor:
        """Codes of texts without blanks, int64 ``[B, N]``.

        Raises:
            DataError: a token outside the alphabet, a blank, or a text of another length than the model's rows.
        """
        x, blank = self._encode(_texts(texts))
        if blank.any():
            row, site = blank.nonzero()[0].tolist()
            problem = f"has a blank at place {site}"
            raise DataError(f"texts[{row}]", problem, "Use encode_query, whose targets are the blanks.")
        return x

    def encode_query(self, texts: str | Sequence[str]) -> tuple[Tensor, Query]:
        """x int64 ``[B, N]`` and p(blanks | all else) of texts whose blanks are ``_`` (or the mask token)."""
        x, blank = self._encode(_texts(texts))
        return x, Query.rest(~blank)

    def decode(self, x: Tensor) -> list[str]:
        """Texts of codes ``[B, N]``; absent sites are left out."""
        self.space.validate(x)
        end = len(self.alphabet)
        return [self.alphabet.decode([code for code in row if code != end]) for row in x.long().tolist()]

    def label(self, site: int, code: float) -> str:  # noqa: ARG002 - tokens are called alike at all sites
        """The token of a code: what reports call a value of a site."""
        return "(absent)" if int(code) == len(self.alphabet) else self.alphabet.symbols[int(code)]

    def absent(self, x: Tensor) -> Tensor:
        """Sites behind the ends of rows, bool ``[B, N]``: what a chain of these rows keeps clamped."""
        return (x == len(self.alphabet)) & torch.tensor(self.variable_length, device=x.device)

    def rest(self, x: Tensor, observed: Tensor | None = None) -> Query:
        """p(x_rest | x_observed) of rows that end where x does: `Query.rest` without absent sites.

        Args:
            x: ``[B, N]``.
            observed: bool ``[N]`` or ``[B, N]``; default: none.
        """
        absent = self.absent(x)
        if observed is None:
            return Query.rest(absent)
        if tuple(observed.shape) not in ((self.num_sites,), tuple(x.shape)):
            fix = f"Pass booleans [N] = [{self.num_sites}] or [B, N] = {list(x.shape)}."
            raise QueryError("observed", f"has shape {tuple(observed.shape)}", fix)
        return Query.rest(absent | observed)

    def _encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Codes int64 ``[B, N]`` and which are blank, bool ``[B, N]`` (their code is 0)."""
        rows = self.alphabet.encode(texts)
        num_sites = self.num_sites
        if len(rows) == num_sites > 1 and all(len(codes) == 1 for codes in rows):
            problem = f"are {num_sites} strings of one token each, where the model's rows have {num_sites}"
            raise DataError("texts", problem, "Each string is a row: join the tokens of a row to one string.")
        for row, codes in enumerate(rows):
            if len(codes) > num_sites or (len(codes) < num_sites and not self.variable_length):
                fix = "Use sized_for(texts), which makes room for the longest."
                raise DataError(f"texts[{row}]", f"has {len(codes)} tokens, the model's rows {num_sites}", fix)
        end = len(self.alphabet)
        padded = [codes + [end] * (num_sites - len(codes)) for codes in rows]
        x = torch.tensor(padded, dtype=torch.int64).view(len(rows), num_sites)
        return x.clamp_min(0), x == BLANK

    # Answers.

    def marginals(self, x: Tensor, query: Query, *, sites: Tensor | None = None) -> CategoricalMarginals:
        """p(x_i | x_C) of every site that is not observed, log-probabilities float64 ``[B, N, K]``.

        With a large alphabet name the sites that you read: [B, N, K] of 512 tokens of BERT are 125 MB a row.

        Args:
            x: ``[B, N]``.
            query: targets and observed sites.
            sites: int64 ``[S]`` or ``[B, S]``: answer for these alone, ``[B, S, K]``, which takes memory for these
                alone.

        Raises:
            QueryError: a query over another number of sites.
            SpaceError: observed values outside the space, or an absent site before the end of its row.
        """
        query = self._checked_query(x, query)
        codes = torch.where(query.observed, x, 0).long()  # nothing unobserved is read
        lengths = self._lengths(codes)
        asking = query.target.any(-1).nonzero().flatten()
        if sites is None:
            unobserved = ~query.observed  # [B, N]
            named = torch.arange(self.num_sites, device=x.device).expand(len(x), -1)
        else:
            named = sites.expand(len(x), -1)  # [B, S]
            unobserved = ~query.observed.gather(1, named)
        row, place = unobserved[asking].nonzero(as_tuple=True)
        site = named[asking[row], place]
        with contextlib.nullcontext() if self.differentiable else torch.no_grad():
            logits = logits_at(
                self.model,
                *self._ids(codes[asking], query.observed[asking], lengths[asking]),
                (row, site + len(self.alphabet.before)),
                self.alphabet.ids,
                vocabulary_size=self._vocabulary_size,
                max_tokens=self.max_tokens,
                count=self.forwards,
            )
            log_probs = self._placed(logits.double().log_softmax(-1), asking[row], place, unobserved.shape)
            if self.variable_length:
                absent = torch.where(unobserved, -math.inf, 0.0)[..., None].to(log_probs)
                log_probs = torch.cat([log_probs, absent], -1)  # [B, N, K + 1]
        return CategoricalMarginals(log_probs)

    def _checked_query(self, x: Tensor, query: Query) -> Query:
        if query.num_sites != self.num_sites:
            problem = f"is over {query.num_sites} sites, but the model's rows have {self.num_sites}"
            raise QueryError("query", problem, "Ask about these, or use mlm.resized(num_sites).")
        query = query.expand(len(x))
        self.space.validate(x, where=query.observed)
        return query

    def features(self, x: Tensor, query: Query) -> Tensor:
        """The last hidden layer at every site, ``[B, N, D]``, float32 or finer; zero at absent sites.

        The network sees what `marginals` shows it: observed tokens, and masks at all other sites. Every row is
        evaluated. A network that does not name ``config.hidden_size`` cannot serve a batch without rows.
        """
        query = self._checked_query(x, query)
        codes = torch.where(query.observed, x, 0).long()  # nothing unobserved is read
        lengths = self._lengths(codes)
        row, site = (torch.arange(self.num_sites, device=x.device) < lengths[:, None]).nonzero(as_tuple=True)
        with contextlib.nullcontext() if self.differentiable else torch.no_grad():
            found = logits_at(
                self.model,
                *self._ids(codes, query.observed, lengths),
                (row, site + len(self.alphabet.before)),
                self.alphabet.ids,
                vocabulary_size=self._vocabulary_size,
                max_tokens=self.max_tokens,
                count=self.forwards,
                hidden=True,
            )
            return found.new_zeros(*x.shape, found.shape[-1]).index_put((row, site), found)

    @staticmethod
    def _placed(log_probs: Tensor, row: Tensor, place: Tensor, shape: torch.Size) -> Tensor:
        """Answers ``[P, K]``, ordered by row, where they belong in ``[B, S]``: ``[B, S, K]``.

        A row's other sites repeat its first answer. Where no row has a second, as with complete conditionals, nothing
        is copied, which saves gigabytes with large alphabets.
        """
        num_rows, num_places = shape
        count = row.bincount(minlength=num_rows)  # [B]
        first = (count.cumsum(0) - count)[count > 0]
        answers = log_probs.new_zeros(num_rows, log_probs.shape[-1]).index_put((row[first],), log_probs[first])
        everywhere = answers[:, None].expand(-1, num_places, -1)  # [B, K] -> [B, S, K]
        return everywhere if len(first) == len(row) else everywhere.contiguous().index_put((row, place), log_probs)

    def _lengths(self, codes: Tensor) -> Tensor:
        """Sites within each row, int64 ``[B]``; absent ones must be its last."""
        absent = self.absent(codes)
        lengths = (~absent).sum(-1)
        sites = torch.arange(self.num_sites, device=codes.device)
        gap = absent & (sites < lengths[:, None])
        if gap.any():
            row, site = gap.nonzero()[0].tolist()
            raise SpaceError(
                "x",
                f"observes site {site} of row {row} to be absent (code {self.absent_code}), but not every later one",
                "Absent sites are the last of a row: observe them all, for example by query = mlm.rest(x, observed).",
            )
        return lengths

    def _ids(self, codes: Tensor, observed: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The network's tokens ``[R, L]``, special ones around and padding behind, and their number ``[R]``."""
        alphabet, num_rows, num_sites = self.alphabet, len(codes), self.num_sites
        first, device = len(alphabet.before), codes.device
        number_of = torch.cat([alphabet.ids, alphabet.ids.new_tensor([alphabet.pad_id])]).to(device)  # of each code
        tokens = torch.where(observed, number_of[codes], alphabet.mask_id)  # [R, N]
        ids = codes.new_full((num_rows, first + num_sites + len(alphabet.after)), alphabet.pad_id)  # [R, L]
        ids[:, :first] = ids.new_tensor(alphabet.before)
        ids[:, first : first + num_sites] = tokens
        behind = torch.arange(len(alphabet.after), device=device) + first + lengths[:, None]  # [R, specials]
        ids.scatter_(1, behind, ids.new_tensor(alphabet.after).expand(num_rows, -1))
        return ids, lengths + first + len(alphabet.after)

    def _most_sites(self) -> int:
        limits = [
            getattr(self.tokenizer, "model_max_length", None),
            getattr(getattr(self.model, "config", None), "max_position_embeddings", None),
        ]
        most = min([int(limit) for limit in limits if limit], default=_UNLIMITED)
        return most - len(self.alphabet.before) - len(self.alphabet.after)

    def __repr__(self) -> str:
        base = getattr(self.model, "get_base_model", lambda: self.model)()
        length = "up to " * self.variable_length + str(self.num_sites)
        return f"{type(self).__name__}({type(base).__name__}, {length} sites, alphabet {self.alphabet})"


def _require_masked(model: nn.Module) -> None:
    """Refuses what transformers knows as a model of another kind; whatever else answers with logits is the caller's."""
    base = getattr(model, "get_base_model", lambda: model)()  # below the adapters of peft
    config, kind = getattr(base, "config", None), type(base).__name__
    problem = ""
    if getattr(config, "is_decoder", False):
        problem = f"is {kind} with config.is_decoder=True: a token would be predicted from those before it alone"
    elif "transformers" in sys.modules:
        from transformers.models.auto import modeling_auto as known

        def is_one_of(classes: dict[str, str | tuple[str, ...]]) -> bool:
            names = {name for value in classes.values() for name in ((value,) if isinstance(value, str) else value)}
            return any(parent.__name__ in names for parent in type(base).__mro__)

        if not is_one_of(known.MODEL_FOR_MASKED_LM_MAPPING_NAMES):
            if is_one_of(known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
                problem = f"is {kind}, a causal language model: it predicts a token from those before it alone"
            elif is_one_of(known.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES):
                problem = f"is {kind}, which writes one sequence given another"
    if problem:
        raise FlexgenError("model", problem, "Pass a masked language model, as AutoModelForMaskedLM loads it.")


def _folder_or_hub(name_or_path: Any, options: Mapping[str, Any]) -> str:
    """Where transformers is to load from: a folder, that of the cache if the hub does not answer, or a name of the hub.

    The hub is contacted once. Transformers would try again for most of a minute, for some files even with
    ``local_files_only=True``.

    Raises:
        CheckpointError: a folder that does not exist, or a name that is in no cache while the hub is out of reach.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise CheckpointError("name_or_path", f"is {kind_of(name_or_path)}", "Pass a folder or a name of the hub.")
    name, revision = os.fspath(name_or_path), options.get("revision")
    if Path(name).exists():
        return name
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    problem = f"{name!r} does not exist"
    try:
        huggingface_hub.utils.validate_repo_id(name)  # type: ignore[attr-defined]
        if options.get("local_files_only"):
            reason = "not asked: local_files_only=True"
        else:
            url = huggingface_hub.hf_hub_url(name, "config.json", revision=revision)
            huggingface_hub.get_hf_file_metadata(url, token=options.get("token"), timeout=10)
            return name
    except HFValidationError as error:
        raise CheckpointError("name_or_path", problem, "Name a folder, or a model of the hub.") from error
    except HfHubHTTPError:
        return name  # the hub answers, if with a refusal, which transformers explains
    except Exception as error:  # of whichever client the hub's library uses
        reason = f"out of reach ({' '.join(str(error).split())[:100].rstrip('.')})"
    try:
        return huggingface_hub.snapshot_download(
            name, revision=revision, cache_dir=options.get("cache_dir"), local_files_only=True
        )
    except LocalEntryNotFoundError as error:
        problem = f"{name!r} is neither a folder nor in the cache, and the hub is {reason}"
        raise CheckpointError("name_or_path", problem, "Name a folder, or load it once with the hub.") from error


def _texts(texts: str | Sequence[str]) -> Sequence[str]:
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, Iterable):
        raise DataError("texts", f"is {kind_of(texts)}", "Pass a string, or a list of strings, one a row.")
    return list(texts)


def import_transformers() -> Any:
    """The package, or an error that says how to get it."""
    try:
        import transformers
    except ImportError as error:
        raise FlexgenError(
            "transformers", "is not installed", "pip install 'flexgen-samplers[transformers]'."
        ) from error
    return transformers
