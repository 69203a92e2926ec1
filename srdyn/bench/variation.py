"""How far one reading of a text is from another that differs only in how it is computed."""

import os
from collections.abc import Iterator, Sequence
from unittest import mock

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from srdyn import contexts, models, spectra, states
from srdyn.architectures import cpu_speedups
from srdyn.bench import subjects, timing
from srdyn.kernels import denormals
from srdyn.study.run import opened

STUDY, ROWS, THREAD, CACHE = "as the study reads", "rows one at a time", "one thread", "through the cache"
PLAIN, STOCK, OLDER = "without compiled sweeps", "transformers' functions", "older instructions"
WAYS = (ROWS, THREAD, CACHE, PLAIN, STOCK, OLDER)
_OLDER = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
_OLDER |= {"MKL_CBWR": "COMPATIBLE", "NUMBA_CPU_NAME": "generic"}
"""What a process is started with to be as on a processor without AVX and fused multiply-add, code compiled here too."""


Read = tuple[Float32[np.ndarray, "L B C H K V"], Float64[np.ndarray, "B U"]]
"""What a reading found: states, and log-probabilities of the tokens that came."""


def table(*, names: Sequence[str], domains: Sequence[str], T: int, positions: Sequence[int]) -> pd.DataFrame:
    """Shipped models read T tokens of each domain in each of `WAYS`: how far off it is from what the study does.

    Columns: model, kind, seed, way, quantity, difference, unit, n. The largest difference of a state, in its spectral
    norm, and of a singular value; of a log-probability; how many ranks differ, and of these how many that are not
    `spectra.uncertain` in either reading. n is how many were compared.
    """
    rows = []
    for name in names:
        model = subjects.shipped(name)
        tokens = text(model, domains, T)
        study = read(STUDY, name, tokens, positions)
        for way in WAYS:
            found = _beside(study, (_older if way == OLDER else read)(way, name, tokens, positions))
            rows += [{**opened.about(model), "way": way, **row} for row in found]
    return pd.DataFrame(rows)


def text(model: models.Model, domains: Sequence[str], T: int) -> Int64[Tensor, "B T"]:
    """One window of held-out text of each domain."""
    draw = torch.Generator().manual_seed(0)
    return torch.cat([contexts.domain(name, model.tokenizer, n=1, length=T, generator=draw) for name in domains])


def read(way: str, name: str, tokens: Int64[Tensor, "B T"], positions: Sequence[int]) -> Read:
    """The tokens as a shipped model reads them in this way, or as the `STUDY` does."""
    model, threads = subjects.shipped(name), torch.get_num_threads()
    if way == STOCK:
        model = subjects.stock(model)
    elif way != PLAIN:
        cpu_speedups.use(model.hf)
    route, parts = "segments" if way == CACHE else "forward", tokens.split(1 if way == ROWS else len(tokens))
    try:
        torch.set_num_threads(1 if way == THREAD else threads)
        with denormals.flushed():
            kept = [states.trace(model, x, positions, measure=torch.clone, route=route) for x in parts]
            log_p = [model.logits(x)[:, :-1].double().log_softmax(-1).gather(-1, x[:, 1:, None]) for x in parts]
    finally:
        torch.set_num_threads(threads)
    return torch.cat(kept, 1).float().numpy(), torch.cat(log_p)[..., 0].numpy()


def _older(*given: object) -> Read:
    with mock.patch.dict(os.environ, _OLDER):
        return timing.elsewhere(read, *given)


def _beside(study: Read, found: Read) -> Iterator[dict[str, object]]:
    one, other = (torch.from_numpy(x[0]) for x in (study, found))
    sigma, again = spectra.singular_values(one), spectra.singular_values(other)
    largest = sigma[..., :1]
    state = spectra.singular_values(other.double() - one.double())[..., :1] / largest
    differs = spectra.effective_rank(sigma) != spectra.effective_rank(again)
    certain = ~(spectra.uncertain(sigma) | spectra.uncertain(again)).any(-1)
    log_p = abs(found[1] - study[1])
    for quantity, difference, unit, n in (
        ("states", state.max(), "σ₁", state.numel()),
        ("singular values", ((again - sigma).abs() / largest).max(), "σ₁", sigma.numel()),
        ("ranks", differs.sum(), "ranks", differs.numel()),
        ("ranks outside the band", (differs & certain).sum(), "ranks", differs.numel()),
        ("log-probabilities", log_p.max(), "nats", log_p.size),
    ):
        yield {"quantity": quantity, "difference": float(difference), "unit": unit, "n": n}
