"""Every figure beside the committed tables that it is drawn from."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import matplotlib as mpl

from srdyn import figures
from srdyn.loading import presets, reference
from srdyn.study.claims import registration
from srdyn.study.run import store
from srdyn.study.trials import effects, frontier

TASKS = ["needle", "recall8", "chain", "sum"]


@functools.cache
def table(stem, where="", panel=None):
    """The rows of a committed table; `panel` is the column that says what a row of panels shows."""
    frame = store.load_table(stem, run=store.REFERENCE)
    frame = frame.query(where).reset_index(drop=True) if where else frame
    return frame.assign(panel=frame[panel]) if panel else frame


class Case(NamedTuple):
    draw: Callable
    tables: tuple
    labels: set
    foot: str
    options: dict

    def given(self):
        """What it draws: copies, so that a test may change them."""
        return [t().copy() if callable(t) else table(*t).copy() for t in self.tables]

    def figure(self, *changed):
        return self.draw(*(changed or self.given()), **self.options)


def case(draw, *tables, labels, foot, **options):
    return Case(draw, tables, labels, foot, options)


SCORED, SAID, LEFT = [*TASKS, effects.KEPT], [*TASKS, effects.TEXT, "induction second"], [effects.KEPT, effects.TEXT]
REGRESSED = ["needle", "recall8", "bits code", "bits prose"]
UNIT = "share of items; accuracy kept: of the intact"
BESIDE = "versus == 'random' and share == 0.25 and arm in ['high', 'low', 'tied high', 'tied low']"
ARMS = "seed == 0 and arm in ['intact', 'high', 'low', 'random', 'decay-matched']"
FAMILIES = presets.read(store.REFERENCE)["04_pruning"]["families"]
LOADS = ["needle", "needle4", "recall4", "recall8", "recall16"]
AT = "position == 512"
STEPS = f"training step ({reference.TOKENS_PER_BATCH:,} tokens each)"
FORMED = ("06_emergence_heads",)
CASES = {
    "trajectories": case(
        figures.trajectories, ("01_stratification_trajectories",),
        labels={"position t (tokens)", "effective rank r(t)"}, foot="8 heads a panel, .* n = .* samples",
    ),
    "head_map": case(
        figures.head_map, ("01_stratification_heads",),
        labels={"head h", "model\nlayer ℓ", "untrained\nlayer ℓ", "effective rank r / d"}, foot="n = .* samples",
    ),
    "rank_distribution": case(
        figures.rank_distribution, ("01_stratification_heads",),
        labels={"effective rank r / d", "share of heads with at most r"}, foot="n = .* samples · band: all heads",
    ),
    "shares": case(
        figures.shares, ("01_stratification_shares",),
        labels={"threshold ε (share of σ₁)", "share of a layer's heads"}, foot="n = .* samples · dashed: 0.2",
    ),
    "measures": case(
        figures.measures, ("02_consistency_claims",), registration.rules, labels={"value (own unit)"}, foot="n = ",
    ),
    "context_matrix": case(
        figures.context_matrix, ("02_consistency_pairs",), labels={"Spearman ρ of ranks"}, foot="n = .* samples",
    ),
    "attacks": case(
        figures.attacks, ("02_consistency_attacks",),
        labels={"effective rank r in text", "effective rank r\nunder attack"}, foot="n = .* samples",
    ),
    "cosine_bound": case(
        figures.cosine_bound, ("02_consistency_steps",),
        labels={"position t (tokens)", "1 − cos(n(t), n(t − 1))"}, foot="n = .* samples, mean and range",
    ),
    "time_order": case(
        figures.time_order, ("02_consistency_time",),
        labels={"position t (tokens)", "Spearman ρ to final ranks"}, foot="n = .* samples · dashed: 0.9",
    ),
    "doses": case(
        figures.doses,
        ("03_ablation_estimates", f"{ARMS} and probe in {SAID}", "probe"),
        labels={"share of each layer's heads removed", *TASKS, effects.TEXT}, foot="heads allow · n = .* items",
    ),
    "contrasts": case(
        figures.contrasts, ("03_ablation_differences", f"{BESIDE} and probe in {SCORED}"),
        labels={f"difference to random heads\n({UNIT})"}, foot="right of the dashed .* n = .* items", unit=UNIT,
    ),
    "single_heads": case(
        figures.single_heads, ("03_ablation_heads", f"seed == 0 and probe in {[*TASKS, 'bits code']}"),
        labels={"layer; within it, effective rank r / d", "needle"}, foot="48–64 heads a model",
    ),
    "coefficients": case(
        figures.coefficients, ("03_ablation_regression", f"seed == 0 and probe in {REGRESSED}"),
        labels={"coefficient (all rank-transformed, standardised)"}, foot="95 % interval, heads resampled",
    ),
    "places": case(
        figures.places, ("03_ablation_sets", "probe == 'needle'"),
        labels={"share of random\nsets that do worse", "needles found"}, foot="200 random sets", value="needles found",
    ),
    "windows": case(
        figures.windows, ("03_ablation_window", f"versus == 'intact' and {ARMS} and probe in {[*TASKS, effects.TEXT]}"),
        labels={"softmax window w (tokens)", "arm × window\n(nats an answer or byte)"}, foot="n = .* items",
    ),
    "rules": case(
        figures.rules, ("04_pruning_estimates", f"arm != 'intact' and probe in {LEFT}", "probe"),
        labels={*LEFT}, foot="to .* of the state's bytes left",
    ),
    "alphas": case(
        figures.alphas, ("04_pruning_alphas",), labels={"α (0: norm, 1: rank)", effects.KEPT, effects.TEXT},
        foot="dashed: 0.95", wanted={effects.KEPT: 0.95},
    ),
    "frontier": case(
        figures.frontier, ("04_pruning_frontier",), labels={"state bytes left", effects.KEPT, frontier.LOSS},
        foot="least and greatest random set.* all 128 tokens.* n = .*", prefix=128,
    ),
    "calibrations": case(
        figures.calibrations, ("04_pruning_calibration",),
        labels={"share of removed heads in common"}, foot="as many heads drawn at random",
    ),
    "memory": case(
        figures.memory, ("04_pruning_memory", f"model in {FAMILIES}"),
        labels={"context length (tokens)", "whole cache of one sequence", "share of the whole cache freed"},
        foot="what goes with .*% of the states",
    ),
    "rank_against_decay": case(
        figures.rank_against_decay, ("05_mechanism_heads",),
        labels={"half-life ln 2/(−g) (tokens)", "effective rank r"}, foot="48–64 heads a panel.* n = .* samples",
    ),
    "explained_variance": case(
        figures.explained_variance, ("05_mechanism_explained",),
        labels={"R² or ρ"}, foot="n = .* samples · share of the variance: between heads .* %, within heads .* %",
    ),
    "residual_map": case(
        figures.residual_map, ("05_mechanism_heads",),
        labels={"head h", "layer ℓ", "r less r in the null"}, foot="n = .* samples · framed: .* of 48 \\(hybrid\\)",
    ),
    "rounded_ranks": case(
        figures.rounded_ranks, ("05_mechanism_precision",), ("05_mechanism_fork",),
        labels={"effective rank r in float64", "r as read"}, foot="n = .* samples · .* C1 measures .* \\(bfloat16\\)",
    ),
    "threshold_sweep": case(
        figures.threshold_sweep, ("05_mechanism_sweep",),
        labels={"threshold ε (share of σ₁)", "share of heads"}, foot="n = .* samples",
    ),
    "head_splits": case(
        figures.head_splits, ("05_mechanism_splits",), labels={"share of heads"}, foot="n = .* samples",
    ),
    "head_sizes": case(
        figures.head_sizes, ("05_mechanism_sizes",), ("05_mechanism_heads", "kind in ('hybrid', 'pure')"),
        labels={"dimensions of a head d", "share of heads", "half-life (tokens)"}, foot="48–64 heads a model; bars",
    ),
    "loads": case(
        figures.loads, ("05_mechanism_truncation", f"arm != 'intact' and probe in {LOADS}"),
        labels={"rank that the states are cut to", "every 64 tokens"}, foot="n = .* items",
    ),
    "half_lives": case(
        figures.half_lives, ("05_mechanism_retention", "factor != factor"),  # NaN
        labels={"half-life set (tokens)", "effective rank r"}, foot="nothing is set; .* n = .* items",
    ),
    "crossover": case(
        figures.crossover, ("05_mechanism_gaps",),
        labels={"distance (tokens)", "recall − local\n(bits a token)"}, foot=r"n = \d+ passages",
    ),
    "damage_predictors": case(
        figures.damage_predictors, ("05_mechanism_damage",), labels={"ρ, or share"}, foot="n = 48–64 heads",
    ),
    "rank_formation": case(
        figures.rank_formation, FORMED, ("06_emergence_distribution", AT),
        labels={STEPS, "effective rank r", "share of heads"}, foot="over .* windows",
    ),
    "identity_formation": case(
        figures.identity_formation, ("06_emergence_identity", AT),
        labels={STEPS, "Spearman ρ of ranks", "Spearman ρ of decays"}, foot="n = .* thin: second seed",
    ),
    "decay_formation": case(
        figures.decay_formation, FORMED, ("06_emergence_origin", AT),
        labels={STEPS, "half-life (tokens)", "R² of the final ranks"}, foot="over .* windows · open: second seed",
    ),
    "contrast_formation": case(
        figures.contrast_formation, ("06_emergence_ablation",),
        labels={STEPS, "cost (bits per byte)", "low − high\n(bits per byte)"}, foot="over .* windows and draws",
    ),
    "update_rules": case(
        figures.update_rules, ("10_rules_measures",), ("10_rules_heads",), ("10_rules_removed",),
        labels={"half-life (tokens)"}, foot="bars: 95 % interval; n = .* samples",
    ),
    "tracing_cost": case(
        figures.tracing_cost, ("07_cost_tracing",),
        labels={"positions", "time over that of one trace"}, foot="medians of .* rounds .* T = .*, B = ",
    ),
    "spectrum_rates": case(
        figures.spectrum_rates, ("07_cost_spectra",), labels={"batch", "spectra per second"},
        foot="medians of .* rounds .* bars: interquartile range",
    ),
    "cost_growth": case(
        figures.cost_growth, ("07_cost_growth",),
        labels={"time of a trace (s)", "tokens T", "layers L", "heads H"}, foot="medians of .* rounds",
    ),
    "pruned_cost": case(
        figures.pruned_cost, ("07_cost_pruned",), labels={"time over the original's"},
        foot="medians of .* 0.611 of the heads left, 0.7 aimed at", left=0.611, wanted=0.7,
    ),
    "training_rates": case(
        figures.training_rates, ("07_cost_training",), labels={"speed over transformers'"}, foot="medians of .* rounds",
    ),
    "verdicts": case(
        figures.verdicts, lambda: table("08_scorecard").fillna(""), labels=set(), foot="the value that decides",
    ),
}  # fmt: skip


@functools.cache
def drawn(name):
    return CASES[name].figure()


def panels(figure):
    """The panels by their titles."""
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def texts(figure):
    return [text.get_text() for text in figure.findobj(mpl.text.Text)]


def foot(figure):
    return figure.texts[-1].get_text().replace("\N{NO-BREAK SPACE}", " ").replace("\n", " ")


def lines(axes, colour, *, longer=0, width=None):
    """What is drawn in a colour, as lists of heights, in the order of drawing."""
    found = [line for line in axes.lines if mpl.colors.same_color(line.get_color(), colour)]
    return [x for x in found if len(x.get_xdata()) > longer and width in (None, x.get_linewidth())]


def heights(axes, colour, **chosen):
    return [list(line.get_ydata()) for line in lines(axes, colour, **chosen)]


def rows(frame, **chosen):
    for name, value in chosen.items():
        frame = frame[frame[name] == value]
    return frame
