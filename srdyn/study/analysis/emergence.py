"""How heads come to differ over training: in rank, in decay, in what is lost without them.

Ranks and decays come from the spectra that training writes down (`train.Run.spectra`): the same held-out windows, read
at about a dozen steps from 0 on. Their intervals are from drawing these windows again with replacement, the same draw
at every step, centred on the estimate (`intervals.bootstrap`). Heads are removed where the weights were kept.
"""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from srdyn import spectra, strata
from srdyn.loading import files, reference
from srdyn.study.analysis import intervals, observations
from srdyn.study.run import opened
from srdyn.study.survey import null_tables
from srdyn.study.trials import effects, trials

OF_A_MODEL = observations.OF_A_MODEL
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
RANK, DECAY = "rank", "log_decay"
HALVES = "other half"
"""A reference beside the final and the untrained model: the same step in other windows, which no agreement can be
expected to surpass."""

REMOVED = ("low", "high", "random")
"""The arms of `trials` whose cost is followed over training."""
REFERENCE_ARMS = (trials.INTACT, "random", "high")
"""What the cost of an arm is measured against."""

Windows = Float[np.ndarray, "windows L H S"]
"""One value of every head in every window at S steps."""
Draws = Float[np.ndarray, "draws L H S"]
"""Means over windows: the estimate first, then over windows drawn again."""


def histories(names: Sequence[str | Path]) -> pd.DataFrame:
    """The spectra over training of these models, as training wrote them, with their kind.

    Raises FileNotFoundError for a model that keeps none.
    """
    tables = []
    for name in names:
        folder = Path(opened.found(name))
        if not (folder / "spectra.parquet").is_file():
            raise FileNotFoundError(
                f"{folder} holds no spectra.parquet: how a model formed is known of those that srdyn trained"
            )
        kind = _training(folder)["settings"]["kind"]
        tables.append(pd.read_parquet(folder / "spectra.parquet").assign(kind=kind))
    return pd.concat(tables, ignore_index=True)


def stages(name: str | Path) -> dict[int, Path]:
    """The folders of a reference model by training step: untrained, with the kept checkpoints, final.

    The untrained model is written to build/untrained.
    """
    folder = Path(opened.found(name))
    kept = {int(path.name.removeprefix("step-")): path for path in sorted(folder.glob("checkpoints/step-*"))}
    return {0: _untrained(folder), **kept, _training(folder)["step"]: folder}


def removals(names: Sequence[str | Path], plan: trials.Plan, *, share: float) -> pd.DataFrame:
    """Bits per byte of the plan's text at every stage of training, with this share of each layer's heads removed.

    Heads are chosen by the ranks that the model of that stage has in the plan's calibration text. `arm`: `intact`,
    `low`, `high`, `random`. `reference`: empty for the bits per byte themselves, otherwise the arm (`intact`, `random`,
    `high`) whose bits per byte are subtracted, window by window. Intervals as in `contrasts`.
    """
    rows, folders = [], []
    for step, folder in (item for name in names for item in stages(name).items()):
        about = {name: _training(folder)["settings"][name] for name in ("kind", "seed")}
        rows.append({"stage": folder.name, "model": reference.name_of(**about), **about, "step": step})
        folders.append(folder)
    arms = [trials.Arm(trials.INTACT), *(trials.Arm(arm, share) for arm in REMOVED)]
    given = trials.answers(folders, arms, plan).rename(columns={"model": "stage"})
    given = given.merge(pd.DataFrame(rows), on=["stage", "kind", "seed"], validate="many_to_one")
    return pd.concat([costs(part).assign(step=step) for step, part in given.groupby("step")], ignore_index=True)


def costs(answers: pd.DataFrame) -> pd.DataFrame:
    """Bits per byte of all text and their differences between arms, for models at one step each."""
    text = effects.with_text(answers)
    found = effects.costs(text[text["probe"] == effects.TEXT], REFERENCE_ARMS)
    columns = [*OF_A_MODEL, "arm", "reference", "share", "removed", "estimate", "low", "high", "n", "draws"]
    return found[columns]


def half_life_that_saturates(d: int, *, eps: float = spectra.EPS) -> float:
    """Tokens: the half-life from which a head of `d` dimensions fills up, under constant decay and random keys."""
    return float(np.log(2) * d / np.log(1 / eps))


def trajectories(history: pd.DataFrame, *, at: int) -> pd.DataFrame:
    """Every head of each kind's first seed at every step: mean rank after `at` tokens, half-life in tokens.

    `stratum` is the one that the head ends training in.
    """
    first = history["seed"] == history.groupby("kind")["seed"].transform("min")
    table, key = history[(history["position"] == at) & first], [*OF_A_MODEL, "layer", "head"]
    table = table.groupby([*key, "step", "D"], as_index=False, sort=False)[[RANK, DECAY]].mean().assign(position=at)
    table["half_life"] = np.log(2) / -table[DECAY]
    final = strata.stratify(_at_the_end(table), by=key)
    return table.merge(final[[*key, "stratum"]].astype({"stratum": str}), on=key)


def distribution(history: pd.DataFrame, *, at: int) -> pd.DataFrame:
    """How the ranks after `at` tokens and the decays are spread over all heads of a model, at every step.

    `measure`: shares of heads in each stratum (`share of low` …), the mean rank of the heads that end training in it
    (`rank of low` …), quantiles of the ranks over heads (`quantile 0.1` …), the standard deviation over heads of
    rank/D (`spread of ranks`) and of the half-life in doublings (`spread of half-lives`).
    """
    tables = []
    for names, data in _of_each_model(history, at, RANK, DECAY):
        ranks, decays = np.split(_windows(data), 2, axis=-1)
        tables.append(observed(ranks, functools.partial(_of_ranks, d=data.D), names, data))
        tables.append(observed(decays, _of_decays, names, data))
    return pd.concat(tables, ignore_index=True).assign(position=at)


def identity(history: pd.DataFrame, *, at: int, value: str = RANK) -> pd.DataFrame:
    """How far the order of all heads at a step agrees with that of the final and of the untrained model.

    `measure`: tie-averaged `spearman` ρ over all heads, the mean of ρ over layers (`spearman within layers`), and for
    ranks Cohen's `kappa` of the strata, between mean values over windows. `reference`: `final`, `untrained`, and
    `other half`: two halves of the windows at the same step, one window of each pair from a domain in either half,
    pairs drawn again. A statistic of equal values is undefined (NaN).
    """
    tables = []
    for names, data in _of_each_model(history, at, value):
        windows, halves = _windows(data), _halves(data)
        agree = functools.partial(_agreements, d=data.D if value == RANK else None)
        for name, step in {"final": -1, "untrained": 0}.items():
            beside = np.concatenate([windows, np.broadcast_to(windows[..., [step]], windows.shape)], -1)
            tables.append(observed(beside, agree, names, data, observations.CORRELATION).assign(reference=name))
        found = observed(halves, agree, names, data, observations.CORRELATION)
        tables.append(found.assign(reference=HALVES, over="pairs of windows"))
    return pd.concat(tables, ignore_index=True).assign(value=value, position=at)


def origin(history: pd.DataFrame, *, at: int) -> pd.DataFrame:
    """Shares of variance of the final ranks' order that rank at the start, and decay at the end, explain.

    R² of a linear regression among rank-transformed values of all heads (ρ² for one predictor): of the rank before the
    first step (`rank at the start`), the decay before it (`decay at the start`), the decay at the last step (`decay at
    the end`), and what start or decay adds to the other (`start beyond decay`, `decay beyond start`).
    """
    tables = []
    for names, data in _of_each_model(history, at, RANK, DECAY):
        ends = [x[..., [0, -1]] for x in np.split(_windows(data), 2, axis=-1)]
        found = observed(np.concatenate(ends, -1), _explained, names, data, observations.SHARE)
        tables.append(found.drop(columns="step").assign(position=at))
    return pd.concat(tables, ignore_index=True)


def measured(identities: pd.DataFrame) -> pd.DataFrame:
    """The rows of claim C10 from the table of `identity`: Spearman ρ of the ranks at the last step.

    `identity with untrained`: with those before the first; `identity in training`: of two halves of the windows.
    """
    rows = _at_the_end(identities)
    rows = rows[(rows["measure"] == "spearman") & (rows["value"] == RANK)]
    names = {"untrained": "identity with untrained", HALVES: "identity in training"}
    tables = [rows[rows["reference"] == reference].assign(measure=name) for reference, name in names.items()]
    columns = ["measure", *OF_A_MODEL, "estimate", "low", "high", "n", "over"]
    return pd.concat(tables, ignore_index=True)[columns]


def halves_of_each_model(history: pd.DataFrame, at: int) -> Iterator[tuple[dict, Windows, observations.Cube]]:
    """Each model's names, its ranks after `at` tokens in pairs of windows of one domain, and their cube.

    The second window's steps lie behind the first's along the last axis.
    """
    for names, data in _of_each_model(history, at, RANK):
        yield names, _halves(data), data


def observed(
    windows: Windows,
    statistic: Callable[[Draws], dict],
    names: dict,
    data: observations.Cube,
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> pd.DataFrame:
    """Every statistic [draws, steps] of the means over windows, with its centred 95 % interval over windows."""
    n = len(windows)
    drawn = intervals.counts(n, generator=torch.Generator().manual_seed(0))
    means = np.tensordot(np.vstack([np.ones(n), drawn]), windows, 1) / n  # whole numbers are summed: ties stay ties
    tables = []
    for measure, values in statistic(means).items():
        estimate, *ends = _centred(values)
        low, high = np.clip(ends, *limits)
        ends = {"estimate": estimate, "low": low, "high": high, "n": n, "over": "windows", **names}
        tables.append(pd.DataFrame({"measure": measure, **ends, "step": data.positions[: len(estimate)]}))
    return pd.concat(tables, ignore_index=True)


def _training(folder: Path) -> dict:
    """What training says of these weights: settings and step."""
    return json.loads((folder / "training.json").read_text())


def _untrained(folder: Path) -> Path:
    """The folder of the model as it was before its first step, written anew."""
    trained = opened.model(folder)
    start, target = null_tables.untrained(trained), files.root() / "build" / "untrained" / folder.name / "step-000000"
    start.hf.config.srdyn_seed, start.hf.config.srdyn_kind = trained.seed, opened.kind(trained)
    start.hf.save_pretrained(target)
    start.tokenizer.save_pretrained(target)
    files.write_json(target / "training.json", _training(folder) | {"step": 0})
    return target


def _at_the_end(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of each model's last step."""
    return table[table["step"] == table.groupby("model")["step"].transform("max")]


def _of_each_model(history: pd.DataFrame, at: int, *values: str) -> Iterator[tuple[dict, observations.Cube]]:
    """Each model's names and its values after `at` tokens; along the last axis of the cube are the training steps."""
    table = history[history["position"] == at]
    if table.empty:
        raise ValueError(
            f"no spectra were taken after {at} tokens, but after {sorted(set(history['position'].tolist()))}"
        )
    for names, part in observations.groups(table, OF_A_MODEL):
        yield names, observations.cube(part.assign(position=part["step"]), *values)


def _windows(data: observations.Cube) -> Windows:
    return data.values.reshape(-1, *data.values.shape[2:])


def _halves(data: observations.Cube) -> Windows:
    """Pairs of windows from one domain, the second's steps behind the first's along the last axis."""
    pairs = len(data.values) // 2
    if not pairs:
        raise ValueError("halves need two samples of each context, got one")
    first, second = (data.values[i : 2 * pairs : 2] for i in (0, 1))
    return _windows(data._replace(values=np.concatenate([first, second], -1)))


def _centred(values: Float[np.ndarray, "draws S"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimate and ends, moved so that the resamples' median falls on the estimate; NaN where most are undefined."""
    estimate, resampled = values[0], values[1:]
    ends = np.full((3, len(estimate)), np.nan)
    enough = ~np.isnan(estimate) & (np.isnan(resampled).mean(0) <= 0.5)
    ends[:, enough] = np.nanquantile(resampled[:, enough], [0.025, 0.5, 0.975], axis=0)
    low, middle, high = ends
    return estimate, low + estimate - middle, high + estimate - middle


def _of_ranks(means: Draws, d: int) -> dict[str, Float[np.ndarray, "draws S"]]:
    heads = _heads(means)
    shares, at_the_end = strata.shares(heads, d), strata.shares(heads[0, -1, :, None], d)
    found = {}
    for i, stratum in enumerate(strata.STRATA):
        found[f"share of {stratum}"], inside = shares[..., i], at_the_end[:, i] == 1
        if inside.any():
            found[f"rank of {stratum}"] = heads[..., inside].mean(-1)
    quantiles = np.quantile(heads, QUANTILES, axis=-1)
    found |= {f"quantile {q:g}": values for q, values in zip(QUANTILES, quantiles, strict=True)}
    return found | {"spread of ranks": heads.std(-1) / d}


def _of_decays(means: Draws) -> dict[str, Float[np.ndarray, "draws S"]]:
    return {"spread of half-lives": _heads(np.log2(-means)).std(-1)}


def _heads(means: Draws) -> Float[np.ndarray, "draws S heads"]:
    return np.moveaxis(means, -1, 1).reshape(len(means), means.shape[-1], -1)


def _agreements(means: Draws, d: int | None) -> dict[str, Float[np.ndarray, "draws _"]]:
    """Of the first half of the last axis with the second."""
    pair = np.split(means, 2, axis=-1)
    in_layers = strata.spearman(*(np.moveaxis(x, -1, 1) for x in pair))
    defined = ~np.isnan(in_layers)
    mean = strata.ratio(np.where(defined, in_layers, 0).sum(-1), defined.sum(-1))
    of_all = [_heads(x) for x in pair]
    found = {"spearman": strata.spearman(*of_all), "spearman within layers": mean}
    return found if d is None else found | {"kappa": strata.kappa(*of_all, d)}


def _explained(means: Draws) -> dict[str, Float[np.ndarray, "draws 1"]]:
    """From means whose last axis is: rank before the first step and at the last, decay likewise."""
    start, final, first_decay, decay = (_heads(means[..., [i]]) for i in range(4))
    to_start, to_decay, between = (strata.spearman(*pair) for pair in ((final, start), (final, decay), (start, decay)))
    both = to_start**2 + to_decay**2 - 2 * to_start * to_decay * between
    both = strata.ratio(both, 1 - between**2)
    return {
        "rank at the start": to_start**2,
        "decay at the start": strata.spearman(final, first_decay) ** 2,
        "decay at the end": to_decay**2,
        "start beyond decay": both - to_decay**2,
        "decay beyond start": both - to_start**2,
    }
