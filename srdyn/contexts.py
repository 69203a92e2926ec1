"""Token sequences for models to read: held-out text by domain, text of one's own, repetition attacks.

Windows of one part of a domain never share a document with those of another part, so that what is traced, what
calibrates a pruning score and what evaluates it stay apart.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from srdyn.loading import files
from srdyn.text import documents

PARTS = ("trace", "calibration", "evaluation")
ATTACKS = {"rare character": "ß", "common number": "1"}
"""What the two repetition attacks repeat (claim C7); the paper names neither character nor number."""


class Windows(NamedTuple):
    """Windows of held-out text; `document[i]` numbers the document, within its part, that window i lies in."""

    tokens: Int[Tensor, "N T"]
    document: Int[Tensor, " N"]


def domains() -> list[str]:
    """The names of the held-out domains, sorted. Raises `FileNotFoundError` where there are none."""
    return _names("contexts")


def domain(
    name: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    n: int,
    length: int,
    generator: torch.Generator,
    part: str = "trace",
) -> Int[Tensor, "B T"]:
    """`n` windows of `length` tokens from one part of a held-out domain, or of text of one's own.

    `name` is one of `domains()` or a place of one's own text (`documents.read`). Windows lie inside single documents,
    never overlap, and are drawn without replacement; no special token is added. `part` is "trace", "calibration" or
    "evaluation": the domain's documents are dealt out to the three, always alike, so that a single document lies in the
    first alone. Raises ValueError for an unknown name or part, or where the part holds fewer windows, and as
    `documents.read` does.
    """
    return _shuffled(name, tokenizer, n, length, generator, part).tokens[:n]


def spread(
    name: str | Path, tokenizer: PreTrainedTokenizerBase, *, n: int, length: int, generator: torch.Generator
) -> Windows:
    """As `domain` of the part "trace", but the documents take turns: none gives another window before all that have
    one left gave theirs. Which document a window comes from says what to resample.
    """
    found = _shuffled(name, tokenizer, n, length, generator, "trace")
    turn = [int((found.document[:i] == document).sum()) for i, document in enumerate(found.document)]
    chosen = torch.tensor(turn).argsort(stable=True)[:n]
    return Windows(*(x[chosen] for x in found))


def block(what: str | Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, " P"]:
    """The tokens that an attack repeats: one of `ATTACKS` by name, or a block of token ids given as it is.

    A rare character may be several tokens of a small vocabulary: P is the period of the context. Raises `ValueError`
    for another name, an empty block or tokens outside the vocabulary.
    """
    if isinstance(what, str):
        if what not in ATTACKS:
            raise ValueError(f"no attack is called {what!r}; there are {', '.join(ATTACKS)}, or give token ids")
        return _encode(ATTACKS[what], tokenizer)
    tokens = torch.as_tensor(what, dtype=torch.long)
    if tokens.ndim != 1 or len(tokens) == 0:
        raise ValueError(f"a block to repeat is a non-empty list of token ids, not of shape {tuple(tokens.shape)}")
    low, high, most = int(tokens.min()), int(tokens.max()), len(tokenizer) - 1
    if low < 0 or high > most:
        raise ValueError(f"a block's token ids lie in 0 … {most}, the vocabulary, but these lie in {low} … {high}")
    return tokens


def repeated(
    what: str | Sequence[int], tokenizer: PreTrainedTokenizerBase, *, length: int, prefix: str = ""
) -> Int[Tensor, "1 T"]:
    """A context of `length` tokens: the text `prefix`, then the block `what` (see `block`) over and over.

    Raises `ValueError` where the prefix leaves no room for one whole block.
    """
    tokens, head = block(what, tokenizer), _encode(prefix, tokenizer)
    room = length - len(head)
    if room < len(tokens):
        raise ValueError(
            f"a context of {length} tokens has no room for a prefix of {len(head)} and a block of {len(tokens)}"
        )
    return torch.cat([head, tokens.repeat(-(-room // len(tokens)))[:room]])[None]


def training_documents(name: str) -> list[str]:
    """The documents of one domain that the reference models and their tokenizer were trained on."""
    return documents.read(_named(name, "corpus"))


def held_out_documents(name: str | Path, *, part: str) -> list[str]:
    """The whole documents of one part of a held-out domain, or of a place of one's own.

    They are dealt out longest first, each to the part that is shortest so far.
    """
    if part not in PARTS:
        raise ValueError(f"no part is called {part!r}; there are {', '.join(PARTS)}")
    whole = documents.read(name if documents.is_place(name) else _named(str(name), "contexts"))
    dealt = {name: [] for name in PARTS}
    for document in sorted(whole, key=len, reverse=True):
        dealt[min(PARTS, key=lambda name: sum(map(len, dealt[name])))].append(document)
    return dealt[part]


def _names(folder: str) -> list[str]:
    suffix = ".jsonl.xz"
    names = sorted(path.name.removesuffix(suffix) for path in (files.data_dir() / folder).glob("*" + suffix))
    if not names:
        raise FileNotFoundError(
            f"{files.data_dir() / folder} holds no {suffix} file; restore it from the repository "
            "or make it with data/corpus/build.py"
        )
    return names


def _named(name: str, folder: str) -> Path:
    if name not in (names := _names(folder)):
        raise ValueError(f"no domain is called {name!r}; there are {', '.join(names)}, or give a path with a slash")
    return files.data_dir() / folder / f"{name}.jsonl.xz"


def _shuffled(
    name: str | Path, tokenizer: PreTrainedTokenizerBase, n: int, length: int, generator: torch.Generator, part: str
) -> Windows:
    """All windows of one part, end to end from each document's first token, in the order drawn; at least n."""
    for what, size in {"n": n, "length": length}.items():
        if size < 1:
            raise ValueError(f"{what} must be at least 1, not {size}")
    encoded = [_encode(document, tokenizer) for document in held_out_documents(name, part=part)]
    tiles = [x[: len(x) // length * length].reshape(len(x) // length, length) for x in encoded]
    document = torch.arange(len(tiles)).repeat_interleave(torch.tensor([len(x) for x in tiles], dtype=torch.long))
    if n > len(document):
        raise ValueError(
            f"{name}: {n} windows of {length} tokens asked for, but the part {part!r} has {len(document)} of them; "
            "ask for fewer, for shorter ones, or give a file with more documents"
        )
    order = torch.randperm(len(document), generator=generator, device=generator.device).cpu()
    return Windows(torch.cat(tiles)[order], document[order])


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, " T"]:
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)
