"""How heads come to differ over training: in rank, in decay, in what is lost without them.

Ranks and decays come from the spectra that training writes down (`train.Run.spectra`): the same held-out windows, read
at about a dozen steps from 0 on. Their intervals are from drawing these windows again with replacement, the same draw
at every step, centred on the estimate (`intervals.bootstrap`). Heads are removed where the weights were kept.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from srdyn import models, spectra, strata
from srdyn.loading import files
from srdyn.study.analysis import observations
from srdyn.study.survey import null_tables, survey
from srdyn.study.trials import effects, trials

OF_A_MODEL = ["model", "kind", "seed"]
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
RANK, DECAY = "rank", "log_decay"
REFERENCES = {"final": -1, "untrained": 0}
"""What the order of the heads at a step is compared with, and its place among the steps."""
HALVES = "other half"
"""The third reference: the same step in other windows, which no agreement can be expected to surpass."""

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
        folder = Path(survey.found(name))
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
    folder = Path(survey.found(name))
    kept = {int(path.name.removeprefix("step-")): path for path in sorted(folder.glob("checkpoints/step-*"))}
    return {0: _untrained(folder), **kept, _training(folder)["step"]: folder}


def removals(names: Sequence[str | Path], plan: trials.Plan, *, share: float) -> pd.DataFrame:
    """Bits per byte of the plan's text at every stage of training, with this share of each layer's heads removed.

    Heads are chosen by the ranks that the model of that stage has in the plan's calibration text. `arm`: `intact`,
    `low`, `high`, `random`. `reference`: empty for the bits per byte themselves, otherwise the arm (`intact`, `random`,
    `high`) whose bits per byte are subtracted, window by window. Intervals as in `contrasts`.
    """
    places = [item for name in names for item in stages(name).items()]
    arms = [trials.Arm(trials.INTACT), *(trials.Arm(arm, share) for arm in REMOVED)]
    given = trials.answers([folder for _, folder in places], arms, plan).rename(columns={"model": "stage"})
    known = pd.DataFrame([_stage(folder, step) for step, folder in places])
    given = given.merge(known, on=["stage", "kind", "seed"], validate="many_to_one")
    return pd.concat([_costs(part).assign(step=step) for step, part in given.groupby("step")], ignore_index=True)


def half_life_that_saturates(d: int, *, eps: float = spectra.EPS) -> float:
    """Tokens: the half-life from which a head of `d` dimensions fills up, under constant decay and random keys."""
    return float(np.log(2) * d / np.log(1 / eps))


def trajectories(history: pd.DataFrame, *, at: int) -> pd.DataFrame:
    """Every head of the models of seed 0 at every step: mean rank after `at` tokens, half-life in tokens.

    `stratum` is the one that the head ends training in.
    """
    table = history[(history["position"] == at) & (history["seed"] == 0)]
    by = [*OF_A_MODEL, "layer", "head", "step", "D"]
    table = table.groupby(by, as_index=False, sort=False)[[RANK, DECAY]].mean().assign(position=at)
    table["half_life"] = np.log(2) / -table[DECAY]
    final = table[table["step"] == table.groupby("model")["step"].transform("max")]
    key = [*OF_A_MODEL, "layer", "head"]
    final = strata.stratify(final, observations.LOW, observations.HIGH, by=key)
    return table.merge(final[[*key, "stratum"]].astype({"stratum": str}), on=key)


def distribution(history: pd.DataFrame, *, at: int) -> pd.DataFrame:
    """How the ranks after `at` tokens and the decays are spread over all heads of a model, at every step.

    `measure`: shares of heads in each stratum (`share of low` …), the mean rank of the heads that end training in it
    (`rank of low` …), quantiles of the ranks over heads (`quantile 0.1` …), the standard deviation over heads of
    rank/D (`spread of ranks`) and of the half-life in doublings (`spread of half-lives`).
    """
    tables = []
    for names, data in _histories(history, at, RANK):
        ranks = _observed(_windows(data), lambda means, d=data.D: _of_ranks(means, d))
        _, decays = next(_histories(_of(history, names), at, DECAY))
        decays = _observed(_windows(decays), lambda means: {"spread of half-lives": _spread(np.log2(-means))})
        tables += [_tidy(found, names, data).assign(position=at) for found in (ranks, decays)]
    return pd.concat(tables, ignore_index=True)


def identity(history: pd.DataFrame, *, at: int, value: str = RANK) -> pd.DataFrame:
    """How far the order of all heads at a step agrees with that of the final and of the untrained model.

    `measure`: tie-averaged `spearman` ρ over all heads, the mean of ρ over layers (`spearman within layers`), and for
    ranks Cohen's `kappa` of the strata, between mean values over windows. `reference`: `final`, `untrained`, and
    `other half`: two halves of the windows at the same step, one window of each pair from a domain in either half,
    pairs drawn again. A statistic of equal values is undefined (NaN).
    """
    tables = []
    for names, data in _histories(history, at, value):
        d = data.D if value == RANK else None
        for reference, place in REFERENCES.items():
            agree = lambda means, at=place, d=d: _agreements(means, _all_at(means, at), d)  # noqa: E731
            tables.append(_tidy(_observed(_windows(data), agree), names, data).assign(reference=reference))
        agree = lambda means, d=d: _agreements(*np.split(means, 2, axis=-1), d)  # noqa: E731
        found = _observed(_halves(data), agree)
        tables.append(_tidy(found, names, data).assign(reference=HALVES, over="pairs of windows"))
    return pd.concat(tables, ignore_index=True).assign(value=value, position=at)


def origin(history: pd.DataFrame, *, at: int) -> pd.DataFrame:
    """Shares of variance of the final ranks' order that rank at the start, and decay at the end, explain.

    R² of a linear regression among rank-transformed values of all heads (ρ² for one predictor): of the rank before the
    first step (`rank at the start`), the decay before it (`decay at the start`), the decay at the last step (`decay at
    the end`), and what start or decay adds to the other (`start beyond decay`, `decay beyond start`).
    """
    tables = []
    for names, ranks in _histories(history, at, RANK):
        _, decays = next(_histories(_of(history, names), at, DECAY))
        ends = np.concatenate([data.values[..., [0, -1]] for data in (ranks, decays)], -1)
        found = _observed(_windows(ranks._replace(values=ends)), _explained)
        tables.append(_tidy(found, names, ranks).drop(columns="step").assign(position=at))
    return pd.concat(tables, ignore_index=True)


def measured(identities: pd.DataFrame) -> pd.DataFrame:
    """The rows of claim C10 from the table of `identity`: Spearman ρ of the ranks at the last step.

    `identity with untrained`: with those before the first; `identity in training`: of two halves of the windows.
    """
    last = identities["step"] == identities.groupby("model")["step"].transform("max")
    rows = identities[last & (identities["measure"] == "spearman") & (identities["value"] == RANK)]
    tables = []
    for name, reference in {"identity with untrained": "untrained", "identity in training": HALVES}.items():
        tables.append(rows[rows["reference"] == reference].assign(measure=name))
    columns = ["measure", *OF_A_MODEL, "estimate", "low", "high", "n", "over"]
    return pd.concat(tables, ignore_index=True)[columns]


def sentences(measures: pd.DataFrame, origins: pd.DataFrame) -> list[str]:
    """What the tables of `measured` and `origin` say of each model."""
    found = []
    halves = measures[measures["measure"] == "identity in training"].set_index("model")["estimate"]
    for model, of_model in origins.groupby("model", sort=False):
        explained = of_model.set_index("measure")["estimate"]
        start = of_model[of_model["measure"] == "rank at the start"].iloc[0]
        found.append(
            f"{model}: ranks before the first step explain {start['estimate']:z.0%} of the order of the ranks after "
            f"training [{start['low']:z.0%}, {start['high']:z.0%}], decays after training "
            f"{explained['decay at the end']:z.0%}, and the start {explained['start beyond decay']:z.0%} beyond those; "
            f"halves of the text agree to ρ = {halves[model]:.2f}. Most of the order: {_made(start)}."
        )
    return found


def _made(start: pd.Series) -> str:
    """Where most of an order comes from, by the interval of the share that the start explains."""
    if start["high"] < 0.5:
        return "made in training"
    return "there before the first step" if start["low"] > 0.5 else "undecided"


def _training(folder: Path) -> dict:
    """What training says of these weights: settings and step."""
    return json.loads((folder / "training.json").read_text())


def _stage(folder: Path, step: int) -> dict[str, object]:
    settings = _training(folder)["settings"]
    kind, seed = settings["kind"], settings["seed"]
    return {"stage": folder.name, "model": reference.name_of(kind, seed), "kind": kind, "seed": seed, "step": step}


def _untrained(folder: Path) -> Path:
    """The folder of the model as it was before its first step, written anew."""
    trained = models.load(folder)
    start, target = null_tables.untrained(trained), files.root() / "build" / "untrained" / folder.name / "step-000000"
    start.hf.config.srdyn_seed, start.hf.config.srdyn_kind = trained.seed, null_tables.kind(trained)
    start.hf.save_pretrained(target)
    start.tokenizer.save_pretrained(target)
    files.write_json(target / "training.json", _training(folder) | {"step": 0})
    return target


def _costs(given: pd.DataFrame) -> pd.DataFrame:
    """Bits per byte of all text and their differences between arms, for models at one step each."""
    text = effects.with_text(given)
    text = text[text["probe"] == effects.TEXT]
    tables = [effects.estimates(text).assign(reference="")]
    for arm in REFERENCE_ARMS:
        found = effects.differences(text, versus=arm)
        tables.append(found.rename(columns={"difference": "estimate", "versus": "reference"}))
    columns = [*OF_A_MODEL, "arm", "reference", "share", "removed", "estimate", "low", "high", "n", "draws"]
    return pd.concat([table[columns] for table in tables], ignore_index=True)


def _histories(history: pd.DataFrame, at: int, value: str) -> Iterator[tuple[dict, observations.Cube]]:
    """Each model's names and its values after `at` tokens; along the last axis of the cube are the training steps."""
    table = history[history["position"] == at]
    if table.empty:
        raise ValueError(
            f"no spectra were taken after {at} tokens, but after {sorted(set(history['position'].tolist()))}"
        )
    for names, part in table.groupby(OF_A_MODEL, sort=False):
        yield dict(zip(OF_A_MODEL, names, strict=True)), observations.cube(part.assign(position=part["step"]), value)


def _of(history: pd.DataFrame, names: dict) -> pd.DataFrame:
    return history[history["model"] == names["model"]]


def _windows(data: observations.Cube) -> Windows:
    return data.values.reshape(-1, *data.values.shape[2:])


def _halves(data: observations.Cube) -> Windows:
    """Pairs of windows from one domain, the second's steps behind the first's along the last axis."""
    pairs = len(data.values) // 2
    if not pairs:
        raise ValueError("halves need two samples of each context, got one")
    first, second = (data.values[i : 2 * pairs : 2] for i in (0, 1))
    values = np.concatenate([first, second], -1)
    return values.reshape(-1, *values.shape[2:])


def _observed(windows: Windows, statistic: Callable[[Draws], dict], *, seed: int = 0) -> pd.DataFrame:
    """Every statistic [draws, steps] of the means over windows, with its centred 95 % interval over windows."""
    n, generator = len(windows), torch.Generator().manual_seed(seed)
    draws = torch.randint(n, (observations.RESAMPLES, n), generator=generator).numpy()
    counts = np.stack([np.ones(n), *(np.bincount(draw, minlength=n) for draw in draws)])
    means = np.tensordot(counts, windows, 1) / n  # whole numbers are summed, so that ties stay ties
    tables = []
    for measure, values in statistic(means).items():
        estimate, low, high = _centred(values)
        ends = {"estimate": estimate, "low": low, "high": high, "n": n, "over": "windows"}
        tables.append(pd.DataFrame({"measure": measure, "place": np.arange(len(estimate)), **ends}))
    return pd.concat(tables, ignore_index=True)


def _centred(values: Float[np.ndarray, "draws S"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimate and ends, moved so that the resamples' median falls on the estimate; NaN where most are undefined."""
    estimate, resampled = values[0], values[1:]
    ends = np.full((3, len(estimate)), np.nan)
    enough = ~np.isnan(estimate) & (np.isnan(resampled).mean(0) <= 0.5)
    ends[:, enough] = np.nanquantile(resampled[:, enough], [0.025, 0.5, 0.975], axis=0)
    low, middle, high = ends
    return estimate, low + estimate - middle, high + estimate - middle


def _tidy(found: pd.DataFrame, names: dict, data: observations.Cube) -> pd.DataFrame:
    steps = np.array(data.positions)[found["place"]]
    return found.drop(columns="place").assign(**names, step=steps)


def _of_ranks(means: Draws, d: int) -> dict[str, Float[np.ndarray, "draws S"]]:
    heads = _heads(means)
    shares = observations.shares(heads, d)
    final = heads[0, -1] / d
    ends = (final <= observations.LOW, None, final >= observations.HIGH)
    found = {}
    for i, stratum in enumerate(strata.STRATA):
        found[f"share of {stratum}"] = shares[..., i]
        inside = ends[i] if ends[i] is not None else ~ends[0] & ~ends[2]
        if inside.any():
            found[f"rank of {stratum}"] = heads[..., inside].mean(-1)
    quantiles = np.quantile(heads, QUANTILES, axis=-1)
    found |= {f"quantile {q:g}": values for q, values in zip(QUANTILES, quantiles, strict=True)}
    return found | {"spread of ranks": _spread(means) / d}


def _spread(means: Draws) -> Float[np.ndarray, "draws S"]:
    return _heads(means).std(-1)


def _heads(means: Draws) -> Float[np.ndarray, "draws S heads"]:
    return np.moveaxis(means, -1, 1).reshape(len(means), means.shape[-1], -1)


def _all_at(means: Draws, place: int) -> Draws:
    """The values of one step in the place of every step."""
    return np.broadcast_to(means[..., [place]], means.shape)


def _agreements(means: Draws, others: Draws, d: int | None) -> dict[str, Float[np.ndarray, "draws S"]]:
    a, b = (np.moveaxis(x, -1, 1) for x in (means, others))
    draws, S, L, H = a.shape
    over_all = [x.reshape(draws * S, L * H) for x in (a, b)]
    in_layers = observations.spearman(a.reshape(-1, H), b.reshape(-1, H)).reshape(draws * S, L)
    found = {"spearman": observations.spearman(*over_all), "spearman within layers": _mean_of_defined(in_layers)}
    if d is not None:
        found["kappa"] = observations.kappa(*over_all, d)
    return {name: values.reshape(draws, S) for name, values in found.items()}


def _mean_of_defined(values: Float[np.ndarray, "rows L"]) -> Float[np.ndarray, " rows"]:
    defined = ~np.isnan(values)
    total, count = np.where(defined, values, 0).sum(-1), defined.sum(-1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def _explained(means: Draws) -> dict[str, Float[np.ndarray, "draws 1"]]:
    """From means whose last axis is: rank before the first step and at the last, decay likewise."""
    start, final, first_decay, decay = (_heads(means[..., [i]])[:, 0] for i in range(4))
    to_start, to_decay, between = (
        observations.spearman(a, b) for a, b in ((final, start), (final, decay), (start, decay))
    )
    both = to_start**2 + to_decay**2 - 2 * to_start * to_decay * between
    both = np.divide(both, 1 - between**2, out=np.full(len(both), np.nan), where=between**2 < 1)
    found = {
        "rank at the start": to_start**2,
        "decay at the start": observations.spearman(final, first_decay) ** 2,
        "decay at the end": to_decay**2,
        "start beyond decay": both - to_decay**2,
        "decay beyond start": both - to_start**2,
    }
    return {name: values[:, None] for name, values in found.items()}
