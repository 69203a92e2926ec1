"""What decides each model that is trained here: its kind and size, what it reads and for how long."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from srdyn import contexts
from srdyn.loading import files, reference
from srdyn.text import documents, tasks
from srdyn.training import mixture, rules


class Tier(NamedTuple):
    """What all models of one tier read: texts, in tokens of one tokenizer, and tasks that grow by one curriculum.

    `corpus` is a folder below the repository, data/corpus where it is empty; of its domains those in `weights` are read
    so many times as often as others.
    """

    tokenizer: str
    corpus: str
    weights: dict[str, float]
    symbols: int
    curriculum: mixture.Curriculum


_SMALL = Tier("data/tokenizer", "", {"math": 2.0}, 0, mixture.SMALL)
TIERS = {
    "small": _SMALL,
    "main": Tier("data/wide/tokenizer", "build/wide", {"math": 2.0}, tasks.MORE_SYMBOLS, mixture.MAIN),
    "text": _SMALL._replace(curriculum=mixture.SMALL.at_its_end({"text": 1.0})),
    "chains": _SMALL._replace(curriculum=mixture.SMALL.at_its_end({"text": 0.3, "arithmetic": 0.7})),
}
"""Proofs are the hardest to compress. The last two are read by models that go on from one that is trained."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides a trained model, and nothing else; `recipe` is its name in `RECIPES`.

    `base` names the recipe of the model of data/models, of the same seed, whose weights it goes on from.
    """

    kind: str
    seed: int = 0
    recipe: str = ""
    tier: str = "small"
    base: str = ""
    tokens: int = 8_000_000
    checkpoints: tuple[int, ...] = (96, 384, 1280)
    learning_rate: float = 4e-3
    warmup_steps: int = 50
    decay_share: float = 0.3
    clip: float = 1.0
    options: dict = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """As `reference.name_of` has it."""
        return reference.name_of(self.recipe or self.kind, self.seed)

    @property
    def reads(self) -> Tier:
        """What the model reads."""
        return TIERS[self.tier]

    @property
    def start(self) -> Path | None:
        """The folder of the model that it goes on from."""
        return files.data_dir() / "models" / reference.name_of(self.base, self.seed) if self.base else None

    @property
    def steps(self) -> int:
        return self.tokens // self.reads.curriculum.tokens_per_batch

    def seen(self, step: int) -> int:
        """Tokens read before this step."""
        return step * self.reads.curriculum.tokens_per_batch

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, constant, linear to zero over the last `decay_share`."""
        rise = (step + 1) / self.warmup_steps
        fall = (self.steps - step) / (self.decay_share * self.steps)
        return self.learning_rate * min(1.0, rise, fall)

    def spectra_steps(self) -> list[int]:
        """0, the powers of two from 4 on, the `checkpoints`, the last step."""
        powers = [2**k for k in range(2, 30) if 2**k < self.steps]
        return sorted({0, *powers, *self.checkpoints, self.steps})

    def record(self) -> dict:
        """As it is written beside a model."""
        plain = {name: value for name, value in dataclasses.asdict(self).items() if name != "base" or value}
        return plain | {"tokens": self.seen(self.steps), "checkpoints": list(self.checkpoints)}


_MAIN = {
    "tier": "main",
    "tokens": 24_000_000,
    "checkpoints": (48, 192, 640, 2560),
    "options": {"heads": 16, "softmax_head": 64, "vocab_size": 4096},
}
_CONTINUED = {"tokens": 1_600_000, "checkpoints": (), "learning_rate": 2e-3}
RECIPES = {
    "hybrid": Settings("hybrid"),
    "pure": Settings("pure"),
    "uniform": Settings("uniform", tokens=5_200_000, checkpoints=(96, 384)),
    "main-hybrid": Settings("hybrid", **_MAIN),
    "main-pure": Settings("pure", **_MAIN),
    **{f"{x}-d{d}": Settings(x, options={"head": d}, checkpoints=()) for x in ("hybrid", "pure") for d in (32, 128)},
    **{kind: Settings(kind, checkpoints=()) for kind in rules.CLASSES},
    **{f"pure-{tier}": Settings("pure", tier=tier, base="pure", **_CONTINUED) for tier in ("text", "chains")},
    "pure-long": Settings("pure", tokens=64_000_000, checkpoints=(3900, 7800, 15600)),
}
"""By name: the small pair and its equal start, the main pair, the small pair with smaller and larger heads, models of
other update rules, `pure` gone on with plain text or with chains, the long run. All may be trained from other seeds, as
`hybrid-seed1`."""


def named(name: str) -> Settings:
    """The recipe and seed that a name like `main-pure-seed1` says. Raises ValueError for an unknown recipe."""
    recipe, _, seed = name.partition("-seed")
    if recipe not in RECIPES:
        raise ValueError(f"{recipe!r} is no recipe; there are {', '.join(RECIPES)}")
    return dataclasses.replace(RECIPES[recipe], recipe=recipe, seed=int(seed or 0))


def tokenizer(tier: Tier) -> PreTrainedTokenizerBase:
    """The tokenizer of a tier."""
    return AutoTokenizer.from_pretrained(files.root() / tier.tokenizer)


def text(tier: Tier) -> tasks.Text:
    """The corpus as one token array per domain, documents separated by the end-of-text token."""
    if tier.corpus:
        return tasks.Text(_read(files.root() / tier.corpus, tier), weights=tier.weights)
    ids = {name: _encoded(texts, tokenizer(tier)) for name, texts in training_documents(tier).items()}
    return tasks.Text(ids, weights=tier.weights)


def training_documents(tier: Tier) -> dict[str, list[str]]:
    """The documents of each domain that a tier's models read. Raises FileNotFoundError for a corpus to be built."""
    if tier.corpus:
        return {path.stem: documents.read(path) for path in _corpus(files.root() / tier.corpus)}
    return {name: contexts.training_documents(name) for name in contexts.domains()}


def held_out(tier: Tier) -> list[Path]:
    """Files of text that no model of the tier read: of the kinds that it read and, of the wide corpus, of others."""
    folders = ("wide/held-out", "wide/unseen") if tier.corpus else ("contexts",)
    return [path for folder in folders for path in sorted((files.data_dir() / folder).glob("*.jsonl.xz"))]


def stream(settings: Settings) -> dict[str, object]:
    """What `mixture.batch` makes each batch of, beside its number."""
    reads = settings.reads
    alphabet = tasks.Alphabet.of(tokenizer(reads), more=reads.symbols)
    return {"seed": settings.seed, "alphabet": alphabet, "text": text(reads), "curriculum": reads.curriculum}


def _read(folder: Path, tier: Tier) -> dict[str, np.ndarray]:
    """The domains of a folder, their tokens kept beside them for the next time."""
    kept, ids = files.content_hash(files.root() / tier.tokenizer)[:12], {}
    for path in tqdm(_corpus(folder), desc="reading the corpus"):
        cache = path.with_name(f"{path.stem}-{files.content_hash(path)[:12]}-{kept}.tokens")
        if (content := files.kept(cache)) is None:
            content = _encoded(documents.read(path), tokenizer(tier)).astype(np.uint16).tobytes()
            files.keep(cache, content)
        ids[path.stem] = np.frombuffer(content, np.uint16)
    return ids


def _corpus(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.jsonl"))
    if not found:
        raise FileNotFoundError(f"{folder} holds no *.jsonl; data/wide/build_wide.py makes them")
    return found


def _encoded(texts: list[str], tokens: PreTrainedTokenizerBase) -> np.ndarray:
    encoded = tokens(texts, add_special_tokens=False)["input_ids"]
    return np.concatenate([[tokens.eos_token_id, *document] for document in encoded])
