"""Every committed figure beside the committed tables that it is drawn from."""

import functools

import matplotlib as mpl

from srdyn import figures
from srdyn.loading import presets
from srdyn.study.claims import claims, registration
from srdyn.study.run import store
from srdyn.study.trials import effects

TASKS = ["needle", "recall8", "chain", "sum"]


@functools.cache
def table(stem, where="", panel=None):
    """The rows of a committed table; `panel` is the column that says what a row of panels shows."""
    frame = store.load_table(stem, run=store.REFERENCE)
    frame = frame.query(where).reset_index(drop=True) if where else frame
    return frame.assign(panel=frame[panel]) if panel else frame


def verdicts(*, main):
    """The scorecard's rows of the main pair, or all others."""
    ledger = table("08_scorecard").fillna("")
    return ledger[ledger["kind"].map(claims.is_main) == main]


def alone_in_main():
    """What single heads of the main pair cost needles and pairs."""
    return store.load_table("03_ablation_heads", run=store.MAIN).query("probe in ['needle', 'recall8']")


class Case:
    """A function of `figures` by its name, the stem of what it draws, of tables: those of that stem if none is given.

    `foot` is a pattern of what stands at the foot; a table is its stem, what `table` takes, or a function.
    """

    def __init__(self, name, stem, *tables, foot="n = .* samples", **options):
        self.name, self.stem, self.tables, self.foot, self.options = name, stem, tables or (stem,), foot, options
        self.draw = getattr(figures, name)

    def given(self):
        """What it draws: copies, so that a test may change them."""
        asked = [(x,) if isinstance(x, str) else x for x in self.tables]
        return [x().copy() if callable(x) else table(*x).copy() for x in asked]

    def figure(self, *changed):
        return self.draw(*(changed or self.given()), **self.options)


SCORED, SAID, LEFT = [*TASKS, effects.KEPT], [*TASKS, effects.TEXT, "induction second"], [effects.KEPT, effects.TEXT]
REGRESSED = ["needle", "recall8", "bits code", "bits prose"]
BESIDE = "versus == 'random' and share == 0.25 and arm in ['high', 'low', 'tied high', 'tied low']"
ARMS = "seed == 0 and arm in ['intact', 'high', 'low', 'random', 'decay-matched']"
NARROWED = f"versus == 'intact' and {ARMS} and probe in {[*TASKS, effects.TEXT]}"
FAMILIES = presets.read(store.REFERENCE)["04_pruning"]["families"]
LOADS = ["needle", "needle4", "recall4", "recall8", "recall16"]
AT = "position == 512"
EVERY = [
    Case("trajectories", "01_stratification", "01_stratification_trajectories", foot="8 heads a panel, .* samples"),
    Case("head_map", "01_stratification_map", "01_stratification_heads"),
    Case("rank_distribution", "01_stratification_distribution", "01_stratification_heads", foot="n = .* band: all"),
    Case("shares", "01_stratification_shares", foot="n = .* samples · dashed: 0.2"),
    Case("measures", "02_consistency", "02_consistency_claims", registration.rules, foot="n = "),
    Case("context_matrix", "02_consistency_pairs"),
    Case("attacks", "02_consistency_attacks"),
    Case("cosine_bound", "02_consistency_steps", foot="n = .* samples, mean and range"),
    Case("time_order", "02_consistency_time", foot="n = .* samples · dashed: 0.9"),
    Case(
        "doses", "03_ablation_doses", ("03_ablation_estimates", f"{ARMS} and probe in {SAID}", "probe"),
        foot="heads allow · n = .* items",
    ),
    Case(
        "contrasts", "03_ablation", ("03_ablation_differences", f"{BESIDE} and probe in {SCORED}"),
        foot="right of the dashed .* n = .* items", unit="share of items; accuracy kept: of the intact",
    ),
    Case(
        "single_heads", "03_ablation_heads",
        ("03_ablation_heads", f"seed == 0 and probe in {[*TASKS, 'bits code']}"), foot="48–64 heads a model",
    ),
    Case(
        "coefficients", "03_ablation_regression", ("03_ablation_regression", f"seed == 0 and probe in {REGRESSED}"),
        foot="95 % interval, heads resampled",
    ),
    Case(
        "places", "03_ablation_sets", ("03_ablation_sets", "probe == 'needle'"),
        foot="200 random sets", value="needles found",
    ),
    Case("windows", "03_ablation_window", ("03_ablation_window", NARROWED), foot="n = .* items"),
    Case(
        "rules", "04_pruning", ("04_pruning_estimates", f"arm != 'intact' and probe in {LEFT}", "probe"),
        foot="to .* of the state's bytes left",
    ),
    Case("alphas", "04_pruning_alphas", foot="dashed: 0.95", wanted={effects.KEPT: 0.95}),
    Case("frontier", "04_pruning_frontier", foot="greatest random set.* all 128 tokens.* n = .*", prefix=128),
    Case("calibrations", "04_pruning_calibration", foot="as many heads drawn at random"),
    Case("memory", "04_pruning_memory", ("04_pruning_memory", f"model in {FAMILIES}"), foot="with .*% of the states"),
    Case("rank_against_decay", "05_mechanism", "05_mechanism_heads", foot="48–64 heads a panel.* n = .* samples"),
    Case(
        "explained_variance", "05_mechanism_explained",
        foot="n = .* samples · share of the variance: between heads .* %, within heads .* %",
    ),
    Case("residual_map", "05_mechanism_residuals", "05_mechanism_heads", foot=r"n = .* framed: .* of 48 \(hybrid\)"),
    Case(
        "rounded_ranks", "05_mechanism_precision", "05_mechanism_precision", "05_mechanism_fork",
        foot=r"n = .* samples · .* C1 measures .* \(bfloat16\)",
    ),
    Case("threshold_sweep", "05_mechanism_sweep"),
    Case("head_splits", "05_mechanism_splits"),
    Case(
        "head_sizes", "05_mechanism_sizes", "05_mechanism_sizes",
        ("05_mechanism_heads", "kind in ('hybrid', 'pure')"), foot="48–64 heads a model; bars",
    ),
    Case(
        "loads", "05_mechanism_truncation", ("05_mechanism_truncation", f"arm != 'intact' and probe in {LOADS}"),
        foot="n = .* items",
    ),
    Case(
        "half_lives", "05_mechanism_retention", ("05_mechanism_retention", "factor != factor"),  # NaN
        foot="nothing is set; .* n = .* items",
    ),
    Case("crossover", "05_mechanism_gaps", foot=r"n = \d+ passages"),
    Case("damage_predictors", "05_mechanism_damage", foot="n = 48–64 heads"),
    Case("rank_formation", "06_emergence", "06_emergence_heads", ("06_emergence_distribution", AT), foot=r"\d windows"),
    Case("identity_formation", "06_emergence_identity", ("06_emergence_identity", AT), foot="n = .* thin: second seed"),
    Case(
        "decay_formation", "06_emergence_decay", "06_emergence_heads", ("06_emergence_origin", AT),
        foot="over .* windows · open: second seed",
    ),
    Case("contrast_formation", "06_emergence_ablation", foot="over .* windows and draws"),
    Case("tracing_cost", "07_cost", "07_cost_tracing", foot="medians of .* rounds .* T = .*, B = "),
    Case("spectrum_rates", "07_cost_spectra", foot="medians of .* rounds .* bars: interquartile range"),
    Case("cost_growth", "07_cost_growth", foot="medians of .* rounds"),
    Case("pruned_cost", "07_cost_pruned", foot="medians .* 0.611 of the heads left, 0.7", left=0.611, wanted=0.7),
    Case("training_rates", "07_cost_training", foot="medians of .* rounds"),
    Case("verdicts", "08_scorecard", lambda: verdicts(main=False), foot="the value that decides"),
    Case(
        "update_rules", "10_rules", "10_rules_measures", "10_rules_heads", "10_rules_removed",
        foot="bars: 95 % interval; n = .* samples",
    ),
]  # fmt: skip
CASES = {case.name: case for case in EVERY}


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
