"""Tokens per second of training on a CPU, from transformers' functions to ours, one change at a time."""

from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor, nn

from srdyn import architectures
from srdyn.architectures import cpu_speedups
from srdyn.bench import subjects, timing
from srdyn.kernels import bfloat16, scan
from srdyn.training import train

STOCK, _SCAN, _SWEEPS, _BFLOAT16 = "transformers", "compiled scan", "and fused sweeps", "and bfloat16 products"


def table(*, B: int, T: int, rounds: int) -> pd.DataFrame:
    """`timing.compared` training steps of the shipped hybrid, by what.

    `step` is a whole step, each case with the change of the one before as well; ratio 2 means twice as fast as
    transformers. `recurrence` is the gated delta rule of all linear layers alone, forwards and backwards, as
    transformers' function and as the compiled scan; beside `step` it says what share of a step that is.
    """
    steps = {name: step(hf, B, T) for name, hf in _variants().items()}
    parts, options = {"step": steps, "recurrence": _recurrences(B, T)}, {"base": STOCK, "faster": True}
    tables = [timing.compared(x, rounds=rounds, tokens=B * T, what=what, **options) for what, x in parts.items()]
    return pd.concat(tables, ignore_index=True)


def step(hf: nn.Module, B: int, T: int) -> timing.Case:
    """A training step on drawn tokens: forwards, backwards, the optimizers of `srdyn.train`."""
    ids = torch.randint(hf.config.vocab_size, (B, T), generator=torch.Generator().manual_seed(0))
    optimizers = train.optimizers(hf.train())

    def case() -> None:
        hf(ids, labels=ids, use_cache=False).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return case


def _variants() -> dict[str, nn.Module]:
    model = subjects.shipped("hybrid")
    found = {STOCK: subjects.stock(model).hf, _SCAN: subjects.copied(model).hf, _SWEEPS: subjects.copied(model).hf}
    cpu_speedups.use(found[_SWEEPS])
    if bfloat16.supported():
        found[_BFLOAT16] = subjects.copied(model).hf
        cpu_speedups.use(found[_BFLOAT16], bfloat16=True)
    return found


def _recurrences(B: int, T: int) -> dict[str, timing.Case]:
    model = subjects.shipped("hybrid")
    site, layers = architectures.sites(model.hf)[0], model.grid.L
    heads, generator = site.recipe.heads(site.mixer), torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(B, T, *shape, generator=generator)  # noqa: E731
    drawn = {name: draw(heads.key_heads, heads.K) for name in ("query", "key")} | {"value": draw(heads.H, heads.V)}
    drawn |= {"g": -0.1 * draw(heads.H).abs(), "beta": draw(heads.H).sigmoid()}
    inputs = {name: x.requires_grad_() for name, x in drawn.items()}
    rules = {STOCK: subjects.stock_functions(site)[site.recipe.chunk_tap], _SCAN: scan.gated_delta_rule}
    return {name: _both_ways(rule, inputs, layers) for name, rule in rules.items()}


def _both_ways(rule: Callable, inputs: dict[str, Tensor], layers: int) -> timing.Case:
    def case() -> None:
        for _ in range(layers):
            outputs, _ = rule(**inputs, use_qk_l2norm_in_kernel=True)
            torch.autograd.grad(outputs.sum(), list(inputs.values()))

    return case
