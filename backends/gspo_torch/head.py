"""The language-model head on a few tokens at a time: logits forward, and the sums that its gradient is made of.

`[tokens, V]` exists for one chunk of tokens, in one buffer that every chunk reuses. Products run in the
dtype of hidden states and weight; logits, softmax and the sum of the weight's gradient are float32 or wider.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .logps import compute_dtype
from .normalise import Normalised, exponentials_, normalise_, slopes_

# Bytes of float32 logits in one chunk. A chunk must hold enough tokens that reading the weight and its
# gradient once per chunk costs little beside the products: about 500 on a CPU, 2,000 on a GPU.
_HOST_BYTES, _HOST_TOKENS = 1 << 26, (256, 8192)
_DEVICE_BYTES, _DEVICE_TOKENS = 1 << 30, (512, 8192)
# Rows of the weight that are widened at once, they or their gradient, where products are narrow.
_WIDEN_BYTES = 1 << 24


class Needs(NamedTuple):
    """Which gradients are asked for."""

    hidden: bool
    weight: bool
    bias: bool


def default_chunk_size(vocabulary: int, device: torch.device) -> int:
    """Tokens per chunk: 64 MiB of float32 logits on a CPU, 1 GiB elsewhere, within bounds that keep products efficient."""
    budget, (low, high) = (_HOST_BYTES, _HOST_TOKENS) if device.type == "cpu" else (_DEVICE_BYTES, _DEVICE_TOKENS)
    return min(high, max(low, budget // (4 * max(1, vocabulary))))


class Head:
    """z = (W h + b)/τ of the tokens at flat positions of `hidden` `[.., D]`."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, chunk_size: int
    ) -> None:
        self.dtype = compute_dtype(hidden)
        self.hidden, self.bias, self.temperature, self.chunk_size = hidden, bias, temperature, chunk_size
        # No CPU multiplies float16 with a wider result, and float16 is too short for sums over tokens.
        emulated = hidden.dtype == torch.float16 and hidden.device.type == "cpu"
        self.weight = weight.to(self.dtype) if emulated else weight
        self._logits: Tensor | None = None

    @property
    def narrow(self) -> bool:
        """Whether products run in a dtype narrower than the sums."""
        return self.weight.dtype != self.dtype

    def chunks(self, count: int) -> Iterator[slice]:
        """Consecutive chunks of `count` tokens."""
        for start in range(0, count, self.chunk_size):
            yield slice(start, min(count, start + self.chunk_size))

    def rows(self, positions: Tensor) -> Tensor:
        """h at flat positions, `[tokens, D]`; a gather, so that slices of a larger array are not copied whole."""
        index = torch.unravel_index(positions, self.hidden.shape[:-1])
        return self.hidden[index].to(self.weight.dtype).view(positions.shape[0], self.hidden.shape[-1])

    def logits(self, rows: Tensor) -> Tensor:
        """z, in the buffer."""
        out = self._room(rows.shape[0])
        if not self.narrow:
            torch.mm(rows, self.weight.T, out=out)
        elif rows.device.type == "cpu":
            self._widened_logits(rows.to(self.dtype), out)
        else:
            out.copy_(_product(rows, self.weight.T))
        if self.bias is not None:
            out.add_(self.bias)
        return out if self.temperature == 1.0 else out.div_(self.temperature)

    def _widened_logits(self, rows: Tensor, out: Tensor) -> None:
        """z from some rows of the weight after the other: no CPU has a product of narrow numbers that keeps a wide result."""
        step = max(1, _WIDEN_BYTES // (4 * max(1, rows.shape[1])))
        for part, columns in zip(self.weight.split(step), out.split(step, 1), strict=True):
            columns.copy_(torch.mm(rows, part.to(self.dtype).T))

    def normalised(self, positions: Tensor, tokens: Tensor) -> Normalised:
        """log π of `tokens` at `positions`, chunk by chunk."""
        found = Normalised.empty(positions.shape[0], self.hidden, self.dtype)
        for at in self.chunks(positions.shape[0]):
            found.put(at, normalise_(self.logits(self.rows(positions[at])), tokens[at]))
        return found

    def _room(self, count: int) -> Tensor:
        if self._logits is None or self._logits.shape[0] < count:
            self._logits = None  # The smaller one goes before the larger one comes.
            self._logits = self.hidden.new_empty((count, self.weight.shape[0]), dtype=self.dtype)
        return self._logits[:count]


class WeightSum:
    """Σ_t dz_t h_tᵀ and Σ_t dz_t: the gradient of weight and bias, in float32 or wider."""

    def __init__(self, head: Head, needs: Needs) -> None:
        self.weight = head.weight.new_zeros(head.weight.shape, dtype=head.dtype) if needs.weight else None
        self.bias = head.weight.new_zeros(head.weight.shape[0], dtype=head.dtype) if needs.bias else None

    def add(self, slopes: Tensor, rows: Tensor, unit: Tensor | None = None) -> None:
        """Adds the tokens of one chunk; `unit` is a factor that the slopes were divided by."""
        if self.bias is not None:
            total = slopes.sum(0, dtype=self.bias.dtype)
            self.bias.add_(total if unit is None else total * unit)
        if self.weight is None:
            return
        if slopes.dtype == self.weight.dtype:
            self.weight.addmm_(slopes.T, rows)
        elif unit is None and _widens(slopes):
            torch.addmm(self.weight, slopes.T, rows, out_dtype=self.weight.dtype, out=self.weight)
        else:
            self._add_widened(slopes, rows, unit)

    def _add_widened(self, slopes: Tensor, rows: Tensor, unit: Tensor | None) -> None:
        assert self.weight is not None
        step = max(1, _WIDEN_BYTES // (4 * max(1, rows.shape[1])))
        for part, columns in zip(self.weight.split(step), slopes.split(step, 1), strict=True):
            wide = _product(columns.T, rows).to(part.dtype)
            part.add_(wide if unit is None else wide.mul_(unit))

    def add_scaled(self, other: WeightSum, factor: Tensor) -> None:
        """Adds another sum times a number that stays on the device."""
        for own, part in ((self.weight, other.weight), (self.bias, other.bias)):
            if own is not None:
                own.addcmul_(part, factor)

    def clear(self) -> None:
        """Starts again at 0."""
        for values in (self.weight, self.bias):
            if values is not None:
                values.zero_()


class Gradients:
    """d loss / d (hidden, weight, bias), one chunk of tokens after another."""

    def __init__(self, head: Head, needs: Needs) -> None:
        self.head, self.needs = head, needs
        self.sums = WeightSum(head, needs)
        # float16 cannot hold a loss's gradient before the loss scale multiplies it.
        dtype = head.dtype if head.hidden.dtype == torch.float16 else head.hidden.dtype
        shape = head.hidden.shape
        self.hidden = torch.zeros(shape, dtype=dtype, device=head.hidden.device) if needs.hidden else None

    @property
    def hidden_rows(self) -> Tensor:
        """The gradient of hidden states as `[positions, D]`."""
        assert self.hidden is not None
        return self.hidden.view(-1, self.hidden.shape[-1])

    def add(
        self,
        slopes: Tensor,
        rows: Tensor,
        positions: Tensor,
        unit: Tensor | None = None,
        sums: WeightSum | None = None,
    ) -> None:
        """Adds one chunk: dz `[tokens, V]`, h, and where the tokens are; `sums` replaces the own weight's sum."""
        head = self.head
        if head.narrow:
            slopes = slopes.to(head.weight.dtype)
        if self.hidden is not None:
            wide = _product(slopes, head.weight)
            scaled = wide if unit is None else wide.to(head.dtype) * unit
            self.hidden_rows.index_copy_(0, positions, scaled.to(self.hidden.dtype))
        (sums or self.sums).add(slopes, rows, unit)

    def scale_hidden(self, positions: Tensor, factor: Tensor) -> None:
        """Multiplies the gradient of some hidden states."""
        if self.hidden is not None:
            for at in self.head.chunks(positions.shape[0]):
                values = self.hidden_rows[positions[at]].to(factor.dtype) * factor
                self.hidden_rows.index_copy_(0, positions[at], values.to(self.hidden.dtype))

    def add_tokens(self, positions: Tensor, tokens: Tensor, found: Normalised, weights: Tensor) -> None:
        """Adds tokens with weights g_t = d loss / d log π(y_t), those that are not 0, making their softmax again."""
        live = weights.nonzero()[:, 0]
        positions, tokens, found, weights = positions[live], tokens[live], found.at(live), weights[live]
        for at in self.head.chunks(positions.shape[0]):
            rows = self.head.rows(positions[at])
            exponentials = exponentials_(self.head.logits(rows), found.peak[at])
            self.add_weighted(exponentials, tokens[at], found.at(at), weights[at], rows, positions[at])

    def add_weighted(
        self,
        exponentials: Tensor,
        tokens: Tensor,
        found: Normalised,
        weights: Tensor,
        rows: Tensor,
        positions: Tensor,
    ) -> None:
        """Adds one chunk from e^{z-m} and g; float16, with its short exponent, sees g divided by its largest value."""
        weights = weights.to(self.head.dtype) / self.head.temperature
        unit = None
        if self.head.weight.dtype == torch.float16:
            unit = weights.abs().amax()
            weights = torch.where(unit > 0, weights / unit, weights)
        self.add(self.slopes(exponentials, tokens, found, weights, positions), rows, positions, unit)

    def slopes(
        self, exponentials: Tensor, tokens: Tensor, found: Normalised, weights: Tensor, positions: Tensor
    ) -> Tensor:
        """g (1[j = y] - softmax_j), in place of e^{z - m}; a head that holds a part of the vocabulary overrides it."""
        return slopes_(exponentials, tokens, found, weights)

    def finish(self, factor: Tensor | None = None) -> list[Tensor | None]:
        """The gradients (times `factor`, in place) in the dtype of what they belong to."""
        found = [self.hidden, self.sums.weight, self.sums.bias]
        if factor is not None:
            found = [None if values is None else values.mul_(factor) for values in found]
        return [None if values is None else values.to(self.head.hidden.dtype) for values in found]


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left · right, with a float32 result from narrow operands where the device has such a product."""
    return torch.mm(left, right, out_dtype=torch.float32) if _widens(left) else torch.mm(left, right)


def _widens(values: Tensor) -> bool:
    """Whether these are narrow values whose products can have a float32 result: on CUDA, since torch 2.8."""
    narrow = values.dtype in (torch.bfloat16, torch.float16)
    return narrow and values.is_cuda and "dtype" in torch.ops.aten.addmm.overloads()
