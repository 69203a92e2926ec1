"""From a model to a smaller one that anyone can serve: `python -m srdyn.prune MODEL --share 0.25 --out FOLDER`.

Heads are scored on one part of the text, what remains is trained on another if wanted (`--heal`), and the loss is read
on a third. notebooks/site/serve.md does the same by hand, a call for each step; `heal` comes between its two losses.
"""

import argparse
import functools
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float64, Int
from scipy import stats
from torch import Tensor, nn
from tqdm.auto import tqdm

from srdyn import contexts, evals, export, models, pruning, scores
from srdyn.loading import checkpoints, files, refusals, resuming, streaming

SAVE_EVERY = 50
CLIP = 1.0


def read(
    model: models.Model, places: Sequence[str], *, part: str, n: int, length: int = 512, seed: int = 0
) -> Int[Tensor, "N T"]:
    """`n` windows of `length` tokens from a part of each of these domains or texts of one's own (`contexts.domain`)."""
    return contexts.of_each(places, model.tokenizer, n=n, length=length, part=part, seed=seed)


def loss(model: models.Model, tokens: Int[Tensor, "N T"]) -> Float64[np.ndarray, " N"]:
    """Bits that the model needs for a token, in the mean over each window."""
    rows = tqdm(tokens.split(8), desc="loss", leave=False)
    return np.concatenate([evals.window_bits(model, some) for some in rows]) / (tokens.shape[1] - 1)


def cost(losses: Mapping[str, Float64[np.ndarray, " N"]]) -> pd.DataFrame:
    """Bits for a token of each model, and more than the first's with a 95 % interval over windows, NaN over one."""
    (_, first), *_ = losses.items()
    rows, drawn = [], {"rng": 0, "method": "percentile", "n_resamples": 2000}
    for name, found in losses.items():
        more, ends = found - first, (np.nan, np.nan)
        if len(more) > 1:
            ends = stats.bootstrap((more,), np.mean, **drawn).confidence_interval
        rows.append((name, found.mean(), more.mean(), *ends, len(found)))
    return pd.DataFrame(rows, columns=["model", "bits a token", "more", "low", "high", "windows"]).round(4)


def heal(
    model: models.Model,
    tokens: Int[Tensor, "N T"],
    *,
    steps: int,
    rate: float = 3e-4,
    batch: int = 8,
    folder: str | Path | None = None,
) -> list[float]:
    """Train all weights, in place, to foretell these windows; the loss in nats of every step.

    AdamW at a rate that falls linearly to 0; step i reads `batch` windows from the i·batch-th on, over and over. In a
    folder it goes on where a like call stopped. Raises ValueError for another's folder, or where weights are elsewhere.
    """
    if not (steps >= 1 and batch >= 1 and 0 < rate < 1):
        wanted = "1 step or more of 1 window or more at a rate below 1"
        raise ValueError(f"healing takes {wanted}: {steps}, {batch}, {rate}")
    if streaming.is_attached(model.hf):
        raise ValueError(f"{model.name} holds no weights to train, they come from elsewhere: load it without offload")
    optimizer = torch.optim.AdamW(model.hf.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    call = {"steps": steps, "rate": rate, "batch": batch, "windows": list(tokens.shape), "sum": int(tokens.sum())}
    call |= {"heads": [list(layer.heads) for layer in model.layers], "parameters": model.hf.num_parameters()}
    path, losses = None if folder is None else Path(folder) / "heal.pt", []
    if path is not None and (saved := resuming.kept(path, device=model.device)) is not None:
        if saved["call"] != call:
            raise ValueError(f"{path} belongs to another healing ({saved['call']}): give another folder, or remove it")
        model.hf.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        losses = saved["losses"]
    model.hf.train()
    for step in tqdm(range(len(losses), steps), initial=len(losses), total=steps, desc="heal", leave=False):
        rows = (torch.arange(batch) + step * batch) % len(tokens)
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        losses.append(_step(model, tokens[rows].to(model.device), optimizer))
        if path is not None and ((step + 1) % SAVE_EVERY == 0 or step + 1 == steps):
            state = {"model": model.hf.state_dict(), "optimizer": optimizer.state_dict()}
            resuming.keep(path, state | {"call": call, "losses": losses})
    model.hf.eval()
    return losses


def _step(model: models.Model, tokens: Int[Tensor, "B T"], optimizer: torch.optim.Optimizer) -> float:
    logits = model.hf(tokens, use_cache=False).logits[:, :-1]
    nats = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
    nats.backward()
    norm = nn.utils.clip_grad_norm_(model.hf.parameters(), CLIP)
    if not torch.isfinite(norm):
        raise FloatingPointError(f"{model.name}: gradient norm {norm} while healing; lower the rate")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return nats.item()


def run(arguments: argparse.Namespace) -> pd.DataFrame:
    """Everything that the command does; the cost, as it stands in the exported model's card.

    What it has found lies beside the folder, in `<out>.unfinished`, until all is written: an interrupted call goes on.
    """
    if arguments.heal < 0:
        raise ValueError(f"--heal is a number of steps, 0 or more, not {arguments.heal}")
    out = Path(arguments.out).expanduser()
    work = out.with_name(f"{out.name}.unfinished")
    model = models.load(arguments.model, device=arguments.device, offload=arguments.offload)
    chosen = {} if arguments.keys == "repeated" else export.choices(model)
    texts = functools.partial(read, model, arguments.text, length=arguments.length, seed=arguments.seed)
    calibration, text = (texts(part=part, n=arguments.n) for part in ("calibration", "evaluation"))
    select = functools.partial(pruning.select, fraction=arguments.share, uniform=True, tp=arguments.tp, **chosen)
    alike = torch.where(model.held, 0.0, torch.nan)
    export.configuration(pruning.prune_heads(model, select(alike)))  # what cannot be is known before the long part
    of = [model.name, str(model.hf.dtype), model.device.type, checkpoints.identity(arguments.model)]
    profiled = [of, calibration.tolist(), scores.MEANS]
    means = resuming.made(work / "profile", profiled, lambda: scores.profile(model, calibration)[:-1])
    profile = scores.Profile(*means, D=model.grid.D)
    keep = select(scores.under(arguments.rule, profile, torch.Generator().manual_seed(arguments.seed)))

    def measured(name: str, *more: object) -> Float64[np.ndarray, " N"]:
        [found] = resuming.made(work / name, [of, text.tolist(), *more], lambda: [torch.from_numpy(loss(model, text))])
        return found.numpy()

    losses = {"whole": measured("whole")}
    if arguments.heal and streaming.is_attached(model.hf):  # only weights that are held can be trained
        model = models.load(arguments.model, device="cpu", dtype=model.hf.dtype)
    model = pruning.prune_heads(model, keep)
    losses["pruned"] = measured("pruned", keep.tolist())
    if arguments.heal:  # on text that neither scored nor compares
        windows = texts(part="trace", n=max(min(arguments.heal, 64) * 8 // len(arguments.text), 1))
        folder = work / f"healing {files.record_hash([of, keep.tolist()])[:8]}"
        heal(model, windows, steps=arguments.heal, rate=arguments.rate, folder=folder)
        losses["healed"] = loss(model, text)
    found = cost(losses)
    export.save(model, out, cost=found)
    shutil.rmtree(work)
    saved = export.realised(model, tp=arguments.tp).to_string(index=False)
    print(found.to_string(index=False), saved, sep="\n\n")
    return found


@refusals.door()
def main(words: Sequence[str] | None = None) -> None:
    """Prune, heal, compare, write; prints what it cost and what each engine saves."""
    parser = argparse.ArgumentParser(prog="python -m srdyn.prune", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a folder, or a name on the Hugging Face hub")
    parser.add_argument("--out", required=True, help="where the smaller model goes")
    parser.add_argument("--share", type=float, default=0.25, help="of the heads, that go")
    parser.add_argument("--rule", default="joint, α = 0.5", choices=list(scores.RULES))
    parser.add_argument("--keys", default="whole", choices=["whole", "repeated"], help="where value heads share keys")
    parser.add_argument("--tp", type=int, default=1, help="devices that are to share the heads")
    parser.add_argument("--text", nargs="+", default=contexts.domains(), help="domains, or files of your own")
    parser.add_argument("--n", type=int, default=4, help="windows of each text to score and to compare with")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--heal", type=int, default=0, help="steps of 8 windows that train what is left")
    parser.add_argument("--rate", type=float, default=3e-4, help="of learning")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--offload", choices=["auto", "cpu", "disk"])
    parser.add_argument("--seed", type=int, default=0)
    logging.basicConfig(level=logging.INFO)
    run(parser.parse_args(words))


if __name__ == "__main__":
    main()
