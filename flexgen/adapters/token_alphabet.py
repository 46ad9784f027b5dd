"""Tokens as category codes: the alphabet of a language model's sites, and strings to and from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from flexgen.checks import did_you_mean, kind_of
from flexgen.errors import DataError, FlexgenError

__all__ = ["BLANK", "TokenAlphabet"]

BLANK = -1  # the code of a place that a string leaves open


class TokenAlphabet:
    """The tokens that a site may hold, numbered 0 .. K-1 in the order given.

    Args:
        tokenizer: of Hugging Face transformers.
        symbols: the tokens, as the tokenizer's vocabulary spells them; a string of one-letter tokens will do. None: all
            of the vocabulary but its special tokens.

    Where every symbol is one character, strings are read a character a token (white space is skipped) and ``_`` is a
    blank. Otherwise the tokenizer cuts them, and its mask token is a blank.

    Attributes:
        symbols: K strings.
        ids: the tokenizer's numbers of the symbols, int64 ``[K]``.
        before, after: special tokens that the tokenizer puts around a sequence, such as [CLS] and [SEP].
        mask_id, pad_id: numbers of the token that hides a token, and of the one behind a sequence's end.

    Raises:
        FlexgenError: a tokenizer without a mask token; symbols that repeat, are special, or are no tokens.
    """

    def __init__(self, tokenizer: Any, symbols: Sequence[str] | None = None) -> None:
        if getattr(tokenizer, "mask_token_id", None) is None:
            problem = f"is {kind_of(tokenizer)} without a mask token"
            raise FlexgenError("tokenizer", problem, "Pass the tokenizer of a masked language model.")
        self._tokenizer = tokenizer
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        special = set(tokenizer.all_special_ids)
        if symbols is None:
            ordinary = {token: number for token, number in vocabulary.items() if number not in special}
            symbols = sorted(ordinary, key=ordinary.__getitem__)
            if not symbols:
                problem = f"knows {len(vocabulary)} tokens, all of them special"
                raise FlexgenError("tokenizer", problem, "Load it from the model's own folder, with its vocabulary.")
        self.symbols = tuple(symbols)
        _check(self.symbols, vocabulary, special)
        self.ids = torch.tensor([vocabulary[symbol] for symbol in self.symbols], dtype=torch.int64)
        self.mask_id = int(tokenizer.mask_token_id)
        self.pad_id = self.mask_id if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        around: list[int] = tokenizer.encode(tokenizer.mask_token)
        place = around.index(self.mask_id)
        self.before, self.after = tuple(around[:place]), tuple(around[place + 1 :])
        self._code_of = {symbol: code for code, symbol in enumerate(self.symbols)}
        self._by_character = all(len(symbol) == 1 for symbol in self.symbols)
        if not self._by_character:
            self.blank: str = tokenizer.mask_token
        else:
            self.blank = "_"

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The codes of each string's tokens, `BLANK` at its blanks.

        Raises:
            DataError: a token outside the alphabet; names the string, the token and its place.
        """
        return [self._encode(text, f"texts[{row}]") for row, text in enumerate(texts)]

    def decode(self, codes: Sequence[int]) -> str:
        """The string of some codes; `BLANK` becomes a blank."""
        if self._by_character:
            return "".join(self.blank if code == BLANK else self.symbols[code] for code in codes)
        numbers = [self.mask_id if code == BLANK else int(self.ids[code]) for code in codes]
        text: str = self._tokenizer.decode(numbers)
        return text

    def _encode(self, text: str, argument: str) -> list[int]:
        if not isinstance(text, str):
            raise DataError(argument, *self._no_text(text))
        tokens: list[str] = list("".join(text.split())) if self._by_character else self._tokenizer.tokenize(text)
        codes = [self._code_of.get(token, BLANK if token == self.blank else None) for token in tokens]
        if None in codes:
            place = codes.index(None)
            token = tokens[place]
            if token.upper() in self._code_of:
                fix = "Write it in capitals."
            else:
                fix = f"Leave it open with {self.blank!r}, or give an alphabet that holds it."
            raise DataError(argument, f"holds {token!r} at place {place}, outside the alphabet {self}", fix)
        return codes  # type: ignore[return-value]

    def _no_text(self, value: Any) -> tuple[str, str]:
        """What is wrong with a row that is no string, and the fix."""
        if isinstance(value, list | tuple) and all(isinstance(token, str) for token in value):
            joint = "" if self._by_character else " "
            return "is a list of tokens", f"Join a row's tokens to one string: {joint!r}.join(tokens)."
        return f"is {kind_of(value)}", "Pass strings."

    def __repr__(self) -> str:
        shown = self.symbols if len(self) <= 40 else (*self.symbols[:5], "..", *self.symbols[-2:])
        return ("" if self._by_character and len(self) <= 40 else " ").join(shown)


def _check(symbols: Sequence[str], vocabulary: dict[str, int], special: set[int]) -> None:
    if not symbols:
        raise FlexgenError("alphabet", "is empty", "Name the tokens that a site may hold.")
    seen: set[str] = set()
    for symbol in symbols:
        if symbol in seen:
            raise FlexgenError("alphabet", f"holds {symbol!r} twice", "Name each token once.")
        if symbol not in vocabulary:
            hint = did_you_mean(symbol, vocabulary)
            raise FlexgenError(
                "alphabet",
                f"holds {symbol!r}, which is no token of this tokenizer",
                f"{hint}Spell tokens as tokenizer.get_vocab() does.",
            )
        if vocabulary[symbol] in special:
            raise FlexgenError("alphabet", f"holds the special token {symbol!r}", "Name ordinary tokens only.")
        seen.add(symbol)
