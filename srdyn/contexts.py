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
from transformers import PreTrainedTokenizerBase as Tokenizer

from srdyn.loading import files
from srdyn.text import documents

PARTS = ("trace", "calibration", "evaluation")
ATTACKS = {"rare character": "ßøþ¶§ðœæ¿¤", "common number": "1234567890"}
"""What the variants of the two repetition attacks repeat (claim C7); the paper names neither character nor number."""


class Windows(NamedTuple):
    """Windows of held-out text; `document[i]` numbers the document, within its part, that window i lies in."""

    tokens: Int[Tensor, "N T"]
    document: Int[Tensor, " N"]


def domains() -> list[str]:
    """The names of the held-out domains, sorted. Raises `FileNotFoundError` where there are none."""
    return _names("contexts")


def domain(
    name: str | Path,
    tokenizer: Tokenizer | None,
    *,
    n: int,
    length: int,
    generator: torch.Generator,
    part: str = "trace",
) -> Int[Tensor, "B T"]:
    """`n` windows of `length` tokens from one part of a held-out domain, or of text of one's own (`documents.read`).

    Windows lie inside single documents, never overlap, and are drawn without replacement; no special token is added.
    `part` is one of `PARTS`, to which documents are dealt out, always alike. Raises ValueError for an unknown name or
    part, where the part holds fewer windows or there is no tokenizer, and as `documents.read` does.
    """
    if tokenizer is None:  # a model's, where its folder holds none
        raise ValueError("no tokenizer: put its files (tokenizer.json, tokenizer_config.json) beside the weights")
    return _shuffled(name, tokenizer, n, length, generator, part).tokens[:n]


def of_each(
    names: Sequence[str | Path], tokenizer: Tokenizer | None, *, n: int, length: int, part: str, seed: int
) -> Int[Tensor, "B T"]:
    """`n` windows from each of these, one after the other, as `domain` draws them: from each with this seed."""
    drawn = {"tokenizer": tokenizer, "n": n, "length": length, "part": part}
    return torch.cat([domain(x, **drawn, generator=torch.Generator().manual_seed(seed)) for x in names])


def spread(name: str | Path, tokenizer: Tokenizer, *, n: int, length: int, generator: torch.Generator) -> Windows:
    """As `domain` of the part "trace", but the documents take turns: none gives another window before all that have
    one left gave theirs. Which document a window comes from says what to resample.
    """
    found = _shuffled(name, tokenizer, n, length, generator, "trace")
    turn = [int((found.document[:i] == document).sum()) for i, document in enumerate(found.document)]
    chosen = torch.tensor(turn).argsort(stable=True)[:n]
    return Windows(*(x[chosen] for x in found))


def blocks(attack: str, tokenizer: Tokenizer) -> list[Int[Tensor, " P"]]:
    """The token blocks that the variants of one of `ATTACKS` repeat; a small vocabulary may spell one with several."""
    if attack not in ATTACKS:
        raise ValueError(f"no attack is called {attack!r}; there are {', '.join(ATTACKS)}")
    return [_encode(character, tokenizer) for character in ATTACKS[attack]]


def repeated(block: Sequence[int] | Int[Tensor, " P"], tokenizer: Tokenizer, *, length: int) -> Int[Tensor, "1 T"]:
    """A context of `length` tokens: a block of token ids, such as one of `blocks`, over and over.

    Raises ValueError for an empty block, one longer than the context, or tokens outside the vocabulary.
    """
    tokens, most = torch.as_tensor(block, dtype=torch.long), len(tokenizer) - 1
    if tokens.ndim != 1 or not 0 < len(tokens) <= length:
        raise ValueError(f"a block to repeat is a list of 1 to {length} token ids, not of shape {tuple(tokens.shape)}")
    if tokens.min() < 0 or tokens.max() > most:
        raise ValueError(f"token ids lie in 0 … {most}, the vocabulary, not in {tokens.min()} … {tokens.max()}")
    return tokens.repeat(-(-length // len(tokens)))[None, :length]


def training_documents(name: str) -> list[str]:
    """The documents of one domain that the reference models and their tokenizer were trained on."""
    return documents.read(_named(name, "corpus"))


def held_out_documents(name: str | Path, *, part: str) -> list[str]:
    """The whole documents of one part of a held-out domain or a place of one's own, dealt out longest first."""
    if part not in PARTS:
        raise ValueError(f"no part is called {part!r}; there are {', '.join(PARTS)}")
    whole = documents.read(name if documents.is_place(name) else _named(str(name), "contexts"))
    dealt = {name: [] for name in PARTS}
    for document in sorted(whole, key=len, reverse=True):
        dealt[min(PARTS, key=lambda name: sum(map(len, dealt[name])))].append(document)
    return dealt[part]


def _names(folder: str) -> list[str]:
    suffix, place = ".jsonl.xz", files.data_dir() / folder
    if names := sorted(path.name.removesuffix(suffix) for path in place.glob("*" + suffix)):
        return names
    raise FileNotFoundError(f"{place} holds no {suffix} file: restore it, or make it with data/corpus/build.py")


def _named(name: str, folder: str) -> Path:
    if name not in (names := _names(folder)):
        raise ValueError(f"no domain is called {name!r}; there are {', '.join(names)}, or give a path with a slash")
    return files.data_dir() / folder / f"{name}.jsonl.xz"


def _shuffled(
    name: str | Path, tokenizer: Tokenizer, n: int, length: int, generator: torch.Generator, part: str
) -> Windows:
    """All windows of one part, end to end from each document's first token, in the order drawn; at least n."""
    for what, size in {"n": n, "length": length}.items():
        if size < 1:
            raise ValueError(f"{what} must be at least 1, not {size}")
    encoded = [_encode(document, tokenizer) for document in held_out_documents(name, part=part)]
    tiles = [x[: len(x) // length * length].reshape(len(x) // length, length) for x in encoded]
    document = torch.arange(len(tiles)).repeat_interleave(torch.tensor([len(x) for x in tiles], dtype=torch.long))
    if n > len(document):
        found = f"but the part {part!r} has {len(document)} of them; give more text, or ask for fewer (n)"
        shorter = "or shorter ones (length; in a notebook the last of its positions)"
        raise ValueError(f"{name}: {n} windows of {length} tokens asked for, {found} {shorter}")
    order = torch.randperm(len(document), generator=generator, device=generator.device).cpu()
    return Windows(torch.cat(tiles)[order], document[order])


def _encode(text: str, tokenizer: Tokenizer) -> Int[Tensor, " T"]:
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)
