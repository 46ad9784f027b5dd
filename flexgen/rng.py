"""Random numbers as arguments: keyed generators, and streams that are independent of how work is batched.

Two sources of randomness are accepted wherever flexgen draws (`Randomness`):

* a ``torch.Generator``: the usual one, fast, its numbers depend on the order and size of the calls;
* `Streams`: one counter-based stream a row. Row ``i`` sees the same numbers whatever other rows stand beside it, on
  whatever device, so that results depend neither on batch size nor on the number of workers, and the whole state is
  two small integers and the rows' names.

Conditionals draw through the functions of this module (`uniform`, `normal`, `categorical`, ...), which serve both.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

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
    "resolve",
    "seed_from",
    "stream",
    "uniform",
]

_MASK63 = (1 << 63) - 1


def key(seed: int, *parts: int | str) -> int:
    """A 63-bit seed for one purpose: a hash of (seed, parts). Different parts give unrelated streams."""
    text = "/".join([str(int(seed)), *(str(part) for part in parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") & _MASK63


def stream(seed: int, *parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for one purpose, for example ``stream(seed, "window", 17)``."""
    generator = torch.Generator(device=device)
    generator.manual_seed(key(seed, *parts))
    return generator


class Streams:
    """One counter-based stream of random bits a row (SplitMix64 finalisers over seed, row name and counter).

    Args:
        seed: any integer; see `key` for making one per purpose.
        rows: int64 ``[B]``, the rows' names, or their number; a row's numbers depend on its name, not its position.
        counter: how many draws were made before; with `seed` and `rows` it is the whole state.

    Source: finaliser constants of Stafford's variant 13 as used in SplitMix64 (Steele, Lea & Flood 2014). Not for
    cryptography.
    """

    def __init__(self, seed: int, rows: int | Tensor, *, counter: int = 0, device: torch.device | str = "cpu") -> None:
        self.seed = int(seed)
        self.rows = torch.arange(rows, device=device) if isinstance(rows, int) else rows.to(torch.int64)
        self.counter = int(counter)
        self._base = _mix(_mix(self.rows * _GOLDEN + _signed(key(self.seed, "rows"))) + _signed(key(self.seed, "base")))

    @property
    def device(self) -> torch.device:
        return self.rows.device

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | Tensor) -> Streams:
        """The streams of some rows, at the same counter; advance them in step with the whole."""
        return Streams(self.seed, self.rows[rows], counter=self.counter)

    def state_dict(self) -> dict[str, object]:
        return {"seed": self.seed, "rows": self.rows.cpu(), "counter": self.counter}

    def bits(self, shape: Sequence[int]) -> Tensor:
        """Random int64 of `shape`, whose first dimension is the rows. Advances the counter by one."""
        if not shape or shape[0] != len(self.rows):
            raise FlexgenError(
                "generator",
                f"has {len(self.rows)} streams, but {tuple(shape)} numbers were requested",
                "Use one stream for each row of x.",
            )
        places = torch.arange(math.prod(shape[1:]), device=self.device)
        offset = _mix(places * _ODD + _signed(key(self.seed, "counter", self.counter)))  # [n]
        self.counter += 1
        return _mix(self._base[:, None] ^ offset).view(*shape)


Randomness = torch.Generator | Streams


def resolve(generator: Randomness | int | None, device: torch.device | str = "cpu") -> Randomness:
    """The source of randomness that an optional argument stands for.

    An integer is a seed; None is a fresh seed from the operating system (never the global generator of torch).
    """
    if isinstance(generator, torch.Generator | Streams):
        return generator
    fresh = torch.Generator(device=device)
    if generator is None:
        fresh.seed()
    else:
        fresh.manual_seed(int(generator))
    return fresh


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


def uniform(shape: Sequence[int], *, generator: Randomness, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform numbers in the half-open [0, 1), exactly representable in `dtype`."""
    if isinstance(generator, torch.Generator):
        return torch.rand(tuple(shape), generator=generator, dtype=dtype, device=generator.device)
    num_bits = 53 if dtype == torch.float64 else 24
    high = (generator.bits(shape) >> (64 - num_bits)) & ((1 << num_bits) - 1)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    return (high.to(real) * 2.0**-num_bits).to(dtype)


def normal(shape: Sequence[int], *, generator: Randomness, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers."""
    if isinstance(generator, torch.Generator):
        return torch.randn(tuple(shape), generator=generator, dtype=dtype, device=generator.device)
    # Box-Muller in float64: one draw of uniforms serves both coordinates.
    u = uniform((*shape, 2), generator=generator, dtype=torch.float64)
    radius = torch.sqrt(-2.0 * torch.log1p(-u[..., 0]))
    return (radius * torch.cos(2.0 * math.pi * u[..., 1])).to(dtype)


def gumbel(shape: Sequence[int], *, generator: Randomness, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard Gumbel numbers, finite."""
    u = uniform(shape, generator=generator, dtype=torch.float64)
    return (-torch.log(-torch.log1p(-u).clamp_max(-(2.0**-60)))).to(dtype)


def bernoulli(probability: Tensor, *, generator: Randomness) -> Tensor:
    """Bool of the shape of `probability`, True with that probability."""
    return uniform(probability.shape, generator=generator, dtype=_real(probability.dtype)) < probability


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


def integers(high: int, shape: Sequence[int], *, generator: Randomness) -> Tensor:
    """Integers int64, uniform on 0 .. high - 1 (bias below high * 2^-53)."""
    return (uniform(shape, generator=generator, dtype=torch.float64) * high).long()


def permutation(num_rows: int, size: int, *, generator: Randomness) -> Tensor:
    """Independent uniform permutations, int64 ``[num_rows, size]``."""
    return uniform((num_rows, size), generator=generator, dtype=torch.float64).argsort(-1)


def _real(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit number."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_ODD = _signed(0xD1B54A32D192ED03)
_M1, _M2 = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, a bijection of 64-bit integers. int64 wraps; the masks make its shifts logical."""
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)).mul_(_M1)  # the first product is ours to write into
    z.bitwise_xor_((z >> 27).bitwise_and_(0x1FFFFFFFFF)).mul_(_M2)
    return z.bitwise_xor_((z >> 31).bitwise_and_(0x1FFFFFFFF))
