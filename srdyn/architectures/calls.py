"""One call of a layer's recurrence: what it reads, from which state, and how its heads forget."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor


class Heads(NamedTuple):
    """Head grid of one layer: H value heads, each with a K × V state of its own, sharing `key_heads` keys."""

    H: int
    key_heads: int
    K: int
    V: int


Rows = Int64[Tensor, " rows"]


class Inputs(tuple):
    """What the recurrence of one layer read, in float32: the arguments of the recipe's `rule`, in its order.

    By name it has q, k `[B, T, Hk, K]`, normalised where the family does so, v `[B, T, H, V]`, g `[B, T, H]`, or
    `[B, T, H, K]` where key channels decay apart, and beta `[B, T, H]`: 1 where the rule knows no write strength, the
    mean where a token writes several times. Value head h reads with key head h // (H / Hk).
    """

    def __new__(cls, **read: Tensor) -> "Inputs":
        return super().__new__(cls, read.values())

    def __init__(self, **read: Tensor) -> None:
        self.q, self.k, self.v, self.g = (read[name] for name in ("q", "k", "v", "g"))
        beta = read["beta"] if "beta" in read else torch.ones_like(self.g[..., 0])
        self.beta = beta.mean(2) if beta.ndim == 4 else beta

    @property
    def gates(self) -> tuple[Float[Tensor, "B T H"], Float[Tensor, "B T H"]]:
        """Log-decay g ≤ 0 and write strength of each head, the mean over its key channels where these decay apart."""
        if self.g.ndim == 3:
            return self.g, self.beta
        # A mean of equal numbers would be rounded.
        return self.g[..., 0] if self.g.stride(-1) == 0 else self.g.mean(-1), self.beta


class Call(NamedTuple):
    """One call of a recurrence: by name the tensors whose axis 1 is time, the state it starts from, all the rest."""

    timed: dict[str, Tensor]
    state: Tensor | None
    options: dict[str, object]

    @property
    def tokens(self) -> int:
        """How many tokens the call reads."""
        return next(iter(self.timed.values())).shape[1]

    def floats(self, *names: str) -> tuple[Tensor, ...]:
        """These of the tensors over time, in float32."""
        return tuple(self.timed[name].float() for name in names)

    def between(self, start: int, end: int, state: Tensor | None) -> "Call":
        """The same call for tokens start … end − 1, from this state on. Raises ValueError for packed sequences."""
        if self.options.get("cu_seqlens") is not None:
            raise ValueError("a tapped model of flash-linear-attention reads without attention_mask and cu_seqlens")
        timed = {name: x[:, start:end] for name, x in self.timed.items()}
        return self._replace(timed=timed, state=state)


class Decay(NamedTuple):
    """Another rate of forgetting for the heads that a layer holds: the log-decay g of each becomes scale·g + added."""

    scale: Float[Tensor, " held"]
    added: Float[Tensor, " held"]

    def of(self, g: Float[Tensor, "B T held *K"]) -> Float[Tensor, "B T held *K"]:
        """The log-decays so changed, of all key channels alike; those of other heads keep their bits."""
        scale, added = (x.to(g.device)[:, None] if g.ndim == 4 else x.to(g.device) for x in self)
        return scale * g + added

    def then(self, later: "Decay") -> "Decay":
        """Both changes, this one first."""
        return Decay(later.scale * self.scale, later.scale * self.added + later.added)
