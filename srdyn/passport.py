"""What every head of a model is, on one page: `python -m srdyn.passport MODEL`.

Writes NAME.json, whose form passport.schema.json states, and NAME.html, which any browser shows without a network.
`diff` compares two of them head by head; `capacity` says in a line what a cut gives.
"""

import argparse
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from tqdm.auto import tqdm

import srdyn
from srdyn import ablation, architectures, contexts, export, models, nulls, prune, spectra, states, strata
from srdyn.kernels import rounding
from srdyn.loading import checkpoints, engines, files, memory, refusals

Passport = Mapping[str, Any]
SCHEMA = "srdyn.passport/3"
LENGTHS = (2048, 8192, 32768, 131072, 1048576)
"""Tokens after which the ledger counts the cache."""
SCRIPT = "figures/atlas.js"
"""What draws a passport: in a page of its own, and in the widget of `figures.atlas`."""
PLACES = 32
"""How many singular values of a state are kept at most, evenly spaced from the largest to the smallest."""
DRAWS = 4
"""How many states without learning a null band spans at least."""
QUIET = -200
"""Decibels below the largest singular value where a smaller one counts as none."""
COMPARED = ("half_life", "write", "norm", "int8", "fp8", "stratum")


def measure(
    model: models.Model,
    tokens: Int[Tensor, "B T"],
    *,
    positions: Sequence[int] | None = None,
    removal: Int[Tensor, "N U"] | None = None,
    weights: str | None = None,
) -> dict[str, Any]:
    """The passport of a model from what it holds while it reads these tokens; ranks and norms are means over them.

    `positions` are by default powers of 2 up to the end. `removal` are windows that each head is taken out for in turn,
    a pass over them a head. `weights` is the hash of the model's files. The null band, where the rule of update has one
    (`nulls`), spans at least `DRAWS` ranks under the head's own decays and write strengths.
    """
    T = tokens.shape[1]
    positions = sorted({2**i for i in range(T.bit_length()) if 2**i < T} | {T}) if positions is None else positions
    with states.gates_of(model, *tokens.shape) as (g, beta):
        read = states.trace(model, tokens, positions, measure=_spectra_and_errors)
    sigma, errors = read[..., :-2], read[..., -1, :, -2:].mean(1)
    places = torch.linspace(0, model.grid.D - 1, min(PLACES, model.grid.D)).round().long()
    some = (sigma / sigma.amax(-1, keepdim=True).clamp(min=1e-300))[..., places].mean(1)
    found = {
        "rank": spectra.effective_rank(sigma).mean(1).transpose(1, 2),  # [L, H, C]
        "spectra": (20 * some.log10()).clamp(min=QUIET).round().transpose(1, 2),  # [L, H, C, places]
        "norm": spectra.nuclear_norm(sigma)[:, :, -1].mean(1),
        "half_life": math.log(2) / -g.double().mean((1, 2)),
        "write": beta.double().mean((1, 2)),
        "int8": errors[..., 0],
        "fp8": errors[..., 1],
    }
    band = _null_ranks(model, g, beta, positions)
    heads = _heads(model, found, band, {} if removal is None else _removals(model, removal))
    versions = {x: metadata.version(x) for x in ("torch", "transformers", "numpy")} | {"srdyn": srdyn.__version__}
    how = {
        "positions": list(positions), "eps": spectra.EPS, "seed": 0, "sequences": len(tokens), "length": T,
        "tokens": hashlib.sha256(tokens.cpu().long().numpy().tobytes()).hexdigest(),
        "removal": None if removal is None else list(removal.shape), "versions": versions,
    }  # fmt: skip
    return {"schema": SCHEMA, "model": _about(model, weights), "measured": how, "heads": heads}


def save(passport: Passport, folder: str | Path) -> Path:
    """Write the JSON, with a hash for `read`, and the page into a folder, named after the model; the page's place."""
    place, name = Path(folder), passport["model"]["name"]
    text = json.dumps({**passport, "sha256": files.record_hash(passport)}, separators=(",", ":"), ensure_ascii=False)
    files.write_bytes(place / f"{name}.json", text.encode())
    files.write_bytes(place / f"{name}.html", page(passport).encode())
    return place / f"{name}.html"


def read(path: str | Path) -> dict[str, Any]:
    """The passport in a JSON that `save` wrote. Raises ValueError for anything else, also if a digit was changed."""
    found = files.read_json(Path(path))
    if found.get("schema") != SCHEMA or found.pop("sha256", "") != files.record_hash(found):
        raise ValueError(f"{path} is no passport of the form {SCHEMA}, or is broken: measure that model again")
    return found


def page(*passports: Passport, selected: Sequence[Sequence[int]] = ()) -> str:
    """HTML that shows passports of one grid side by side, without a network; `selected` (along L, head) are marked."""
    shell, script = (resources.files("srdyn").joinpath(x).read_text("utf-8") for x in ("passport.html", SCRIPT))
    given = json.dumps({"passports": passports, "selected": selected}, separators=(",", ":"), ensure_ascii=False)
    # Inside a script element nothing but a closing tag, or the start of a comment, needs care.
    return shell.replace("{{script}}", script).replace("{{given}}", given.replace("<", "\\u003c"))


def diff(a: Passport, b: Passport) -> pd.DataFrame:
    """Every number of a head that differs: layer, head, measure, a, b; ranks at the end. Empty where none does.

    What removal costs counts where both have it. Where they read other text (`measured`), part of it is the text's.
    Raises ValueError for passports of another form, positions or ε, or of models with other layers or heads.
    """
    if a["schema"] != b["schema"]:
        raise ValueError(f"the passports have the forms {a['schema']} and {b['schema']}: measure one again")
    for what in ("positions", "eps"):
        if (ours := a["measured"][what]) != (other := b["measured"][what]):
            raise ValueError(f"the passports were measured with {what} {ours} and {other}: measure one again")
    rows, theirs = [], {(head["layer"], head["head"]): head for head in b["heads"]}
    if theirs.keys() != {(head["layer"], head["head"]) for head in a["heads"]}:
        told = "of a model that was cut, the README beside it says which heads it still has"
        raise ValueError(f"{a['model']['name']} and {b['model']['name']} do not have the same layers and heads; {told}")
    for ours in a["heads"]:
        other = theirs[ours["layer"], ours["head"]]
        pairs = [(name, ours[name], other[name]) for name in COMPARED]
        pairs.append(("rank", ours["rank"][-1], other["rank"][-1]))
        if ours["removal"] and other["removal"]:
            pairs.append(("removal", ours["removal"]["bits"], other["removal"]["bits"]))
        rows += [(ours["layer"], ours["head"], *pair) for pair in pairs if pair[1] != pair[2]]
    return pd.DataFrame(rows, columns=["layer", "head", "measure", "a", "b"])


def capacity(
    passport: Passport, keep: int, *, tokens: int = 8192, gib: float | int = 40, cost: pd.DataFrame | None = None
) -> str:
    """What a model with `keep` heads in every layer gives, in a line; `cost` is `prune.cost` of such a one.

    Sequences are those of `tokens` tokens whose caches fit beside nothing else. Keys go as `export.keys_left` says.
    Raises ValueError unless 1 ≤ keep ≤ all of a layer's heads.
    """
    about = passport["model"]
    whole = engines.Sizes(**about["sizes"])
    if not 1 <= keep <= whole.heads:
        raise ValueError(f"a layer of {about['name']} has {whole.heads} heads: keep 1 to all of them, not {keep}")
    cut = whole._replace(heads=keep, keys=export.keys_left(whole, keep))
    before, after = (engines.state_bytes(sizes)["transformers"] for sizes in (whole, cut))
    kept = about["kv_bytes_per_token"] * tokens
    more = int(gib * 2**30 // (after + kept)) - int(gib * 2**30 // (before + kept))
    lost = "loss not measured"
    if cost is not None:
        last = cost.iloc[-1]
        lost = f"loss {last['more']:+.3f} bits a token [{last['low']:.3f}, {last['high']:.3f}]"
    return (
        f"keep {keep} of {whole.heads} heads: state {keep / whole.heads - 1:+.0%}, prefix checkpoint "
        f"{(after - before) / 2**20:+.2f} MiB, {more} more sequences of {tokens} tokens in {gib:g} GiB, {lost}"
    )


def _spectra_and_errors(state: Float[Tensor, "B H K V"]) -> Float64[Tensor, "B H measured"]:
    """Singular values, then the relative error of the state rounded to int8 and to float8 (e4m3), a scale a head."""
    size = state.flatten(2).norm(dim=-1).clamp(min=torch.finfo(state.dtype).tiny)
    errors = [(rounding.rounded(state, form) - state).flatten(2).norm(dim=-1) / size for form in ("int8", "fp8")]
    return torch.cat([spectra.singular_values(state), torch.stack(errors, -1).double().cpu()], -1)


def _null_ranks(model: models.Model, g: Tensor, beta: Tensor, positions: Sequence[int]) -> dict[str, Tensor] | None:
    """The lowest and the highest rank [L, C, H] of states without learning; None where the rule has none such."""
    if not all(site.recipe.gated_delta for site in architectures.sites(model.hf)):
        return None
    generator, drawn = torch.Generator().manual_seed(0), []
    draws = -(-DRAWS // g.shape[1])
    g, beta = (x.repeat(1, draws, 1, 1) for x in (g, beta.where(~g.isnan(), 0.0)))
    for layer in tqdm(range(model.grid.L), desc="null", delay=10, leave=False):
        sigma = nulls.decay_only(g[layer], model.grid.K, model.grid.V, positions, beta=beta[layer], generator=generator)
        drawn.append(spectra.effective_rank(sigma))
    band = torch.stack(drawn)
    return {"low": band.amin(1), "high": band.amax(1)}


def _removals(model: models.Model, tokens: Int[Tensor, "N T"]) -> dict[tuple[int, int], dict[str, float]]:
    """What the model needs more for a token without each head that it holds, in bits; of several windows, its ends."""
    whole, found = prune.loss(model, tokens), {}
    for layer, head in tqdm(model.held.nonzero().tolist(), desc="removals", leave=False):
        heads = torch.zeros_like(model.held)
        heads[layer, head] = True
        with ablation.ablate_heads(model, heads):
            cost = prune.cost({"whole": whole, "without": prune.loss(model, tokens)}).iloc[1]
        found[layer, head] = cost[["more", "low", "high"]].dropna().rename({"more": "bits"}).to_dict()
    return found


def _heads(model: models.Model, found: dict[str, Tensor], band: dict | None, removals: dict) -> list[dict]:
    """A record a head that the model holds; layers by their place in the decoder."""
    strata_of, rows = strata.members(found["rank"][..., -1].numpy(), model.grid.D).argmax(0), []
    for layer, head in model.held.nonzero().tolist():
        place = {"layer": model.layers[layer].index, "head": head, "stratum": strata.STRATA[strata_of[layer, head]]}
        row = {name: _rounded(x[layer, head].tolist()) for name, x in found.items()}
        null = band and {name: _rounded(x[layer, :, head].tolist()) for name, x in band.items()}
        rows.append(place | row | {"null": null, "removal": removals.get((layer, head))})
    return rows


def _rounded(x: float | list) -> float | int | list | None:
    """Four digits are more than any of these numbers is known to; None for what does not exist (no decay, say)."""
    if isinstance(x, list):
        return [_rounded(each) for each in x]
    short = float(f"{x:.4g}") if math.isfinite(x) else None
    return int(short) if short is not None and short.is_integer() else short


def _about(model: models.Model, weights: str | None) -> dict[str, Any]:
    """What the model is and what its caches cost."""
    state, per_token = models.state_bytes(model), memory.attention(model.hf.config).values(1) * model.hf.dtype.itemsize
    bytes_ = [{"tokens": n, "state": state, "cache": memory.cache_bytes(model.hf, n)} for n in LENGTHS]
    return {
        "name": model.name, "class": type(model.hf).__name__, "seed": model.seed,
        "parameters": model.hf.num_parameters(), "grid": {**model.grid._asdict(), "D": model.grid.D},
        "layers": [layer.index for layer in model.layers], "sizes": engines.sizes(model.hf)._asdict(),
        "kv_bytes_per_token": per_token, "bytes": bytes_, "weights": weights,
    }  # fmt: skip


@refusals.door()
def main(words: Sequence[str] | None = None) -> None:
    """Measure a model, write its passport, print where."""
    parser = argparse.ArgumentParser(prog="python -m srdyn.passport", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a folder, or a name on the Hugging Face hub")
    parser.add_argument("--out", default="build/passports", help="folder for the JSON and the page")
    parser.add_argument("--text", nargs="+", default=contexts.domains(), help="domains, or files of your own")
    parser.add_argument("--n", type=int, default=1, help="windows of each text")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a window")
    parser.add_argument("--removal", type=int, default=0, help="windows of each text to remove every head for")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--offload", choices=["auto", "cpu", "disk"])
    arguments = parser.parse_args(words)
    if arguments.removal < 0:
        raise ValueError(f"--removal is a number of windows, 0 or more, not {arguments.removal}")
    model = models.load(arguments.model, device=arguments.device, offload=arguments.offload)
    tokens = prune.read(model, arguments.text, part="trace", n=arguments.n, length=arguments.length)
    removal = None
    if arguments.removal:
        removal = prune.read(model, arguments.text, part="evaluation", n=arguments.removal)
    stored = checkpoints.weight_files(Path(arguments.model).expanduser())
    found = measure(model, tokens, removal=removal, weights=files.content_hash(*stored) if stored else None)
    print(save(found, arguments.out))


if __name__ == "__main__":
    main()
