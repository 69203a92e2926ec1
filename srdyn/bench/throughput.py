"""Spectra per second: ours beside the ways that other code takes."""

import functools

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from srdyn import spectra
from srdyn.bench import timing

BASE = "torch.linalg.svdvals"
_COLUMNS = ["d", "batch", "method", "n", "median", "spread", "unit", "base", "ratio", "low", "high", "per_second"]
_COLUMNS += ["error", "note"]
_SECONDS = 20.0
"""For all rounds of a size and batch; where they need more there are fewer of them, down to one."""
_LARGEST = 2**31
"""Bytes of float64 that a batch may have; larger ones are left out, and said to be."""
_CHECKED = 100
"""Matrices of each size whose singular values are compared with LAPACK's."""


def by_numpy(states: Float[Tensor, "*batch K V"]) -> Float64[Tensor, "*batch D"]:
    """Matrix by matrix, as a script does that walks over heads."""
    sigma = [np.linalg.svd(state, compute_uv=False) for state in states.double().flatten(0, -3).numpy()]
    return torch.from_numpy(np.stack(sigma)).unflatten(0, states.shape[:-2])


def by_gram(states: Float[Tensor, "batch d d"]) -> Float64[Tensor, "batch d"]:
    """Square roots of the eigenvalues of SᵀS, which lose half of the digits: what is below 1e-8·σ₁ drowns."""
    exact = states.double()
    return torch.linalg.eigvalsh(exact.mT @ exact).clamp(min=0).sqrt().flip(-1)


METHODS = {
    "srdyn": spectra.singular_values,
    BASE: spectra.reference,
    "numpy, one by one": by_numpy,
    "Gram and eigvalsh": by_gram,
}


def table(*, sizes: tuple[int, ...], batches: tuple[int, ...], rounds: int) -> pd.DataFrame:
    """A row for each size, batch, method: `timing.medians` with ratios to torch.linalg (2: twice as fast), per_second.

    `error` is the largest error of a singular value in units of σ₁ against LAPACK in float64; `note` says what was left
    out, and why. Matrices are float32 with normal entries, as nobody favours; all methods work in float64.
    """
    return pd.concat([_of_size(d, batches, rounds) for d in sizes], ignore_index=True)


def _of_size(d: int, batches: tuple[int, ...], rounds: int) -> pd.DataFrame:
    errors, each, tables = _errors(d), 0.0, []  # each: seconds that all methods took for a matrix of the batch before
    for batch in sorted(batches):
        if (size := batch * d * d * 8) > _LARGEST:
            note = f"left out: {size / 2**30:.1f} GiB in float64"
            rows = pd.DataFrame({"method": list(METHODS), "note": note})
        else:
            states = torch.randn(batch, d, d, generator=torch.Generator().manual_seed(d))
            cases = {method: functools.partial(spectrum, states) for method, spectrum in METHODS.items()}
            fewer = max(1, min(rounds, int(_SECONDS / (each * batch)))) if each else rounds
            times = timing.interleaved(cases, rounds=fewer, warm_up=each * batch < 1)
            rows = timing.medians(times, base=BASE, faster=True).rename(columns={"case": "method"})
            rows = rows.assign(per_second=batch / rows["median"], note="")
            each = float(rows["median"].sum()) / batch
        tables.append(rows.assign(d=d, batch=batch, error=rows["method"].map(errors)))
    return pd.concat(tables, ignore_index=True).reindex(columns=_COLUMNS)


def _errors(d: int) -> dict[str, float]:
    states = torch.randn(_CHECKED, d, d, generator=torch.Generator().manual_seed(d))
    exact = spectra.reference(states)
    return {name: float(((method(states) - exact) / exact[:, :1]).abs().max()) for name, method in METHODS.items()}
