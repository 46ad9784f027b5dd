"""Random numbers as arguments: keyed generators, and streams that are independent of how work is batched.

Two sources of randomness are accepted wherever flexgen draws (`Randomness`):

* a ``torch.Generator``: the usual one, fast, its numbers depend on the order and size of the calls;
* `Streams`: one counter-based stream a row. Row ``i`` sees the same numbers whatever other rows stand beside it, on
  whatever device, so that results depend neither on batch size nor on the number of workers, and the whole state is
  two small integers and the rows' names.

Conditionals draw through the functions of this module (`uniform`, `normal`, `categorical`, ...), which serve both.
"""

from __future__ import annotations

import functools
import hashlib
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from flexgen.errors import FlexgenError

__all__ = [
    "Randomness",
    "Streams",
    "bernoulli",
    "categorical",
    "gumbel",
    "integers",
    "key",
    "normal",
    "permutation",
    "philox4x32",
    "resolve",
    "seed_from",
    "stream",
    "uniform",
]

# The name of the streams' generator and layout: what is saved to go on bit for bit says it, and refuses another.
GENERATOR = "philox4x32-10"

_MASK63 = (1 << 63) - 1
_MASK32 = (1 << 32) - 1

_Answer = TypeVar("_Answer")
_Arguments = ParamSpec("_Arguments")


def _drawing(function: Callable[_Arguments, _Answer]) -> Callable[_Arguments, _Answer]:
    """Tells what torch could not use of the arguments; to check them before each draw would cost as much as it does."""

    @functools.wraps(function)
    def draw(*args: _Arguments.args, **named: _Arguments.kwargs) -> _Answer:
        try:
            return function(*args, **named)
        except FlexgenError:
            raise
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            MemoryError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            kinds = {name: named[name] for name in sorted(named)} | dict(enumerate(args))
            told = ", ".join(f"{name} is of type {type(value).__name__}" for name, value in kinds.items())
            reason = (str(error).strip().split("\n") or [""])[0][:200].rstrip(".")
            problem = f"cannot be used by rng.{function.__name__} ({told}: {reason})"
            fix = "Pass sizes that fit in memory and a torch.Generator or Streams; see the function's documentation."
            raise FlexgenError("arguments", problem, fix) from error

    return draw


def key(seed: int, *parts: int | str) -> int:
    """A 63-bit seed for one purpose: a hash of (seed, parts). Different parts give unrelated streams."""
    text = "/".join([str(_whole("seed", seed)), *(str(part) for part in parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") & _MASK63


@_drawing
def stream(seed: int, *parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for one purpose, for example ``stream(seed, "window", 17)``."""
    generator = torch.Generator(device=device)
    generator.manual_seed(key(seed, *parts))
    return generator


def _whole(argument: str, value: Any) -> int:
    """As ``checks.whole_number``, which stands above this module."""
    if type(value) is int and -_MOST_BITS < value < _MOST_BITS:
        return value
    try:
        if isinstance(value, bool):
            raise TypeError
        found = operator.index(value)
    except (TypeError, RuntimeError, NotImplementedError):
        raise FlexgenError(argument, f"is of type {type(value).__name__}", "Pass a whole number.") from None
    if not -_MOST_BITS < found < _MOST_BITS:
        raise FlexgenError(argument, f"has {found.bit_length()} bits", "Pass a whole number of 128 bits or fewer.")
    return found


_MOST_ROWS = 1 << 28
_MOST_BITS = 1 << 128


class Streams:
    """One stream of random bits a row, by Philox 4x32-10 (see `philox4x32`).

    The generator's key is a hash of the seed; its counter is made of the row's name, of the number of the draw and of
    the place within the draw. Hence every number is a function of these alone. Not for cryptography.

    Args:
        seed: any integer; see `key` for making one per purpose.
        rows: int64 ``[B]``, the rows' names, or their number; a row's numbers depend on its name, not its position.
        counter: how many draws were made before, below 2^32; with `seed` and `rows` it is the whole state.
    """

    @_drawing
    def __init__(self, seed: int, rows: int | Tensor, *, counter: int = 0, device: torch.device | str = "cpu") -> None:
        self.seed = _whole("seed", seed)
        self.counter = _whole("counter", counter)
        if isinstance(rows, Tensor) and rows.ndim == 1 and not (rows.is_floating_point() or rows.is_complex()):
            self.rows = rows.to(torch.int64)
        else:
            num_rows = _whole("rows", rows)
            if not 0 <= num_rows <= _MOST_ROWS:
                raise FlexgenError("rows", f"is {num_rows}", f"Pass their number, 0 to {_MOST_ROWS}, or their names.")
            self.rows = torch.arange(num_rows, device=device)

    @property
    def device(self) -> torch.device:
        return self.rows.device

    def __len__(self) -> int:
        return len(self.rows)

    @_drawing
    def __getitem__(self, rows: slice | Tensor) -> Streams:
        """The streams of some rows, at the same counter; advance them in step with the whole."""
        return Streams(self.seed, self.rows[rows], counter=self.counter)

    def fold_in(self, *parts: int | str | Tensor) -> Streams:
        """Streams of their own for a part of the work, at counter 0; these streams stay where they are.

        They depend on the seed, the rows' names and `parts`, not on what was drawn before. Different parts give
        unrelated streams.

        Args:
            parts: numbers and words, the same for all rows; or tensors int64 ``[B]``, a number for each row.

        >>> Streams(0, 8).fold_in("sweep", 17)  # doctest: +SKIP
        """
        names = [part for part in parts if not isinstance(part, Tensor)]
        child = Streams(key(self.seed, "fold", *names), self.rows)
        for part in parts:
            if isinstance(part, Tensor):
                if part.shape != self.rows.shape:
                    fix = f"Pass one number for each stream, [{len(self)}]."
                    raise FlexgenError("parts", f"hold a tensor of shape {tuple(part.shape)}", fix)
                first, second, *_ = philox4x32((*_halves(part.long()), *_halves(child.rows)), _words(key(child.seed)))
                child.rows = first | (second << 32)
        return child

    def fork(self, *parts: int | str) -> Streams:
        """As `fold_in`, for the draw that would come next: another call gives other streams. Advances by one."""
        self.counter += 1
        return self.fold_in("fork", self.counter - 1, *parts)

    def state_dict(self) -> dict[str, object]:
        return {"seed": self.seed, "rows": self.rows.cpu(), "counter": self.counter}

    @_drawing
    def bits(self, shape: Sequence[int]) -> Tensor:
        """Random int64 of `shape`, whose first dimension is the rows. Advances the counter by one."""
        one, two, three, four = self._blocks(shape, numbers_a_block=2)
        pairs = torch.stack([one | (two << 32), three | (four << 32)], -1)  # [B, n / 2, 2]
        return _leading(pairs, shape)

    @_drawing
    def words(self, shape: Sequence[int]) -> Tensor:
        """Random numbers of 32 bits as int64, otherwise as `bits` and at half the price."""
        return _leading(torch.stack(self._blocks(shape, numbers_a_block=4), -1), shape)

    def _blocks(self, shape: Sequence[int], *, numbers_a_block: int) -> tuple[Tensor, ...]:
        if not shape or shape[0] != len(self.rows):
            raise FlexgenError(
                "generator",
                f"has {len(self.rows)} streams, but {tuple(shape)} numbers were requested",
                "Use one stream for each row of x.",
            )
        assert 0 <= self.counter < 1 << 32, "the counter has 32 bits"
        places = torch.arange(-(-math.prod(shape[1:]) // numbers_a_block), device=self.device)
        draw = torch.tensor(self.counter, device=self.device)
        low, high = _halves(self.rows[:, None])
        self.counter += 1
        return philox4x32((places, draw, low, high), _words(key(self.seed, "philox")))  # [B, n / numbers_a_block] each


def philox4x32(counter: Sequence[Tensor], key: tuple[int, int], *, rounds: int = 10) -> tuple[Tensor, ...]:
    """Philox 4x32, a random function of a counter, as integer tensor operations on any device.

    Args:
        counter: four tensors of 32-bit numbers as int64, whose shapes broadcast.
        key: two 32-bit numbers.
        rounds: 10 pass all tests of TestU01; fewer are for tests.

    Returns:
        Four tensors of random 32-bit numbers as int64.

    Source: Salmon, Moraes, Dror & Shaw (2011), *Parallel random numbers: as easy as 1, 2, 3*; agrees with the known
    answers of their library Random123.
    """
    if all(part.device.type == "cpu" for part in counter):  # NumPy: a fifth of the time for few numbers, 2/3 for many
        with np.errstate(over="ignore"):
            return tuple(torch.as_tensor(part) for part in _philox([part.numpy() for part in counter], key, rounds))
    return tuple(_philox(counter, key, rounds))


def _philox(counter: Sequence[Any], key: tuple[int, int], rounds: int) -> list[Any]:
    """Of int64 tensors or arrays, whose products wrap as unsigned numbers do; the mask makes the shifts logical."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for number in range(rounds):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # 64 bits
        c0, c2 = p1 >> 32, p0 >> 32
        if number < 3:  # the shapes still grow
            c0, c2 = (c0 ^ c1 ^ k0) & _MASK32, (c2 ^ c3 ^ k1) & _MASK32
        else:
            c0 ^= c1
            c0 ^= k0
            c0 &= _MASK32
            c2 ^= c3
            c2 ^= k1
            c2 &= _MASK32
        c1, c3 = p1, p0  # what stands above their 32 bits is cut off with the rest, one operation later
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    return [c0, c1 & _MASK32, c2, c3 & _MASK32]


def _leading(blocks: Tensor, shape: Sequence[int]) -> Tensor:
    """As many of the numbers ``[B, blocks, each]`` as `shape` has."""
    return blocks.flatten(1)[:, : math.prod(shape[1:])].reshape(*shape)


def _halves(values: Tensor) -> tuple[Tensor, Tensor]:
    return values & _MASK32, (values >> 32) & _MASK32


def _words(number: int) -> tuple[int, int]:
    return number & _MASK32, number >> 32


Randomness = torch.Generator | Streams


@_drawing
def resolve(generator: Randomness | int | None, device: torch.device | str = "cpu") -> Randomness:
    """The source of randomness that an optional argument stands for.

    An integer is a seed; None is a fresh seed from the operating system (never the global generator of torch).
    """
    if isinstance(generator, torch.Generator | Streams):
        return generator
    seed = None if generator is None else _whole("generator", generator)
    if seed is not None and not -(1 << 63) <= seed < 1 << 64:
        raise FlexgenError("generator", f"is {seed}", "A seed has 64 bits.")
    fresh = torch.Generator(device=device)
    if seed is None:
        fresh.seed()
    else:
        fresh.manual_seed(seed)
    return fresh


@_drawing
def seed_from(generator: Randomness | int | None) -> int:
    """A seed drawn from `generator`, from which keyed streams can be derived."""
    if isinstance(generator, Streams):
        generator.counter += 1
        names = hashlib.blake2b(generator.rows.cpu().numpy().tobytes(), digest_size=8).hexdigest()
        return key(generator.seed, "seed", generator.counter - 1, names)
    if isinstance(generator, int):
        return generator
    source = resolve(generator)
    assert isinstance(source, torch.Generator)
    return int(torch.randint(_MASK63, (), generator=source, device=source.device))


@_drawing
def uniform(shape: Sequence[int], *, generator: Randomness, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform numbers in the half-open [0, 1), exactly representable in `dtype`."""
    if isinstance(generator, torch.Generator):
        return torch.rand(tuple(shape), generator=generator, dtype=dtype, device=generator.device)
    if dtype == torch.float64:
        return ((generator.bits(shape) >> 11) & ((1 << 53) - 1)).to(dtype).mul_(2.0**-53)
    # Types of less precision keep as many bits as they have: rounding could give 1.
    num_bits = {torch.bfloat16: 8, torch.float16: 11}.get(dtype, 24)
    return (generator.words(shape) >> (32 - num_bits)).to(torch.float32).mul_(2.0**-num_bits).to(dtype)


@_drawing
def normal(shape: Sequence[int], *, generator: Randomness, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers."""
    if isinstance(generator, torch.Generator):
        return torch.randn(tuple(shape), generator=generator, dtype=dtype, device=generator.device)
    # Box-Muller in float64: two normal numbers from two uniform ones, of 32 bits unless float64 is asked for.
    pairs = (*shape[:1], (math.prod(shape[1:]) + 1) // 2, 2)
    if dtype == torch.float64:
        u = 1.0 - uniform(pairs, generator=generator, dtype=torch.float64)  # never 0
    else:
        u = generator.words(pairs).to(torch.float64).add_(0.5).mul_(2.0**-32)
    radius, angle = torch.sqrt(-2.0 * torch.log(u[..., 0])), 2.0 * math.pi * u[..., 1]
    return _leading(torch.stack([radius * angle.cos(), radius * angle.sin()], -1), shape).to(dtype)


@_drawing
def gumbel(shape: Sequence[int], *, generator: Randomness, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard Gumbel numbers, finite."""
    u = uniform(shape, generator=generator, dtype=torch.float64)
    return (-torch.log(-torch.log1p(-u).clamp_max(-(2.0**-60)))).to(dtype)


@_drawing
def bernoulli(probability: Tensor, *, generator: Randomness) -> Tensor:
    """Bool of the shape of `probability`, True with that probability."""
    return uniform(probability.shape, generator=generator, dtype=_real(probability.dtype)) < probability


@_drawing
def categorical(logits: Tensor, *, generator: Randomness) -> Tensor:
    """Categories int64 ``[B, ..]`` from unnormalised log-probabilities ``[B, .., K]``, by inversion of the CDF.

    A category whose logit is -inf is never drawn.
    """
    cdf = torch.softmax(logits, dim=-1).cumsum(-1)  # [.., K]
    total = cdf[..., -1]
    threshold = uniform(cdf.shape[:-1], generator=generator, dtype=_real(cdf.dtype)) * total
    # Rounding must not reach the total, which would push the draw past the last category that has mass.
    threshold = torch.minimum(threshold, torch.nextafter(total, torch.zeros_like(total)))
    return (cdf <= threshold[..., None]).sum(-1)


@_drawing
def integers(high: int, shape: Sequence[int], *, generator: Randomness) -> Tensor:
    """Integers int64, uniform on 0 .. high - 1 (bias below high * 2^-53)."""
    return (uniform(shape, generator=generator, dtype=torch.float64) * high).long()


@_drawing
def permutation(num_rows: int, size: int, *, generator: Randomness) -> Tensor:
    """Independent uniform permutations, int64 ``[num_rows, size]``."""
    return uniform((num_rows, size), generator=generator, dtype=torch.float64).argsort(-1)


def _real(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32
