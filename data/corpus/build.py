"""Builds the corpus, the held-out contexts, the tokenizer and their table in data/README.md.

The Debian packages are fetched (Debian 13, "trixie") and unpacked by

    apt-get download r-cran-janeaustenr libpython3.13-stdlib libpython3.13-minimal metamath-databases python3.13-doc
    for package in *.deb; do dpkg-deb -x "$package" unpacked; done
    python data/corpus/build.py unpacked

The same packages give the same bytes; their versions are recorded in data/README.md.
"""

import argparse
import hashlib
import itertools
import json
import lzma
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import overlap
import sources
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

DATA = Path(__file__).resolve().parents[1]
TRAIN_CHARACTERS = 3_000_000
HELD_OUT_CHARACTERS = 450_000
HELD_OUT_NOVEL = "persuasion/"
TRAIN_LENGTH = range(200, 120_000)
HELD_OUT_LENGTH = range(12_000, 60_000)
VOCABULARY = 1024
SEPARATOR = "<|endoftext|>"
TABLE = re.compile(r"(?<=<!-- corpus: begin -->\n).*?(?=<!-- corpus: end -->)", re.DOTALL)

Documents = list[sources.Document]


def build(unpacked: Path, data: Path) -> None:
    """Writes every file of the corpus below `data` from the packages unpacked below `unpacked`."""
    split = {source.domain: divide(source.domain, source.documents(unpacked)) for source in sources.SOURCES}
    texts = {domain: [document.text for document in train] for domain, (train, _) in split.items()}
    known = overlap.known_windows(itertools.chain.from_iterable(texts.values()))
    rows = []
    for source in sources.SOURCES:
        train, held_out = split[source.domain]
        kept = clean(held_out, known)
        made = (("corpus", "training text", train), ("contexts", "held-out text, shared lines removed", kept))
        for folder, role, documents in made:
            path = data / folder / f"{source.domain}.jsonl.xz"
            write_documents(path, documents)
            rows.append(row(path.relative_to(data), source, sources.version(unpacked, source.package), role, documents))
        copy_licence(unpacked, source.package, data / "corpus" / "licences")
    # Prose counts twice, so that more whole words become single tokens: the tasks ask for such words.
    tokenizer = train_tokenizer(itertools.chain(*texts.values(), texts["prose"]))
    tokenizer.save_pretrained(data / "tokenizer")
    rows.append(
        f"| `tokenizer/` | byte-level BPE | all of `corpus/` | – | Apache-2.0 | – | {len(tokenizer):,} tokens |\n"
    )
    write_table(data / "README.md", rows)


def divide(domain: str, documents: Iterable[sources.Document]) -> tuple[Documents, Documents]:
    """Training documents and held-out ones, whole, in an order that depends on their names only."""
    shuffled = sorted(documents, key=lambda document: hashlib.sha256(document.id.encode()).digest())
    if domain == "prose":
        held_out = sorted((d for d in shuffled if d.id.startswith(HELD_OUT_NOVEL)), key=lambda d: d.id)
    else:
        eligible = (document for document in shuffled if len(document.text) in HELD_OUT_LENGTH)
        held_out = up_to(HELD_OUT_CHARACTERS, eligible)
    taken = {document.id for document in held_out}
    others = (d for d in shuffled if d.id not in taken and len(d.text) in TRAIN_LENGTH)
    return up_to(TRAIN_CHARACTERS, others), held_out


def up_to(characters: int, documents: Iterable[sources.Document]) -> Documents:
    """Documents from the front until they hold at least so many characters."""
    chosen, total = [], 0
    for document in documents:
        if total >= characters:
            break
        chosen.append(document)
        total += len(document.text)
    return chosen


def clean(held_out: Documents, known: np.ndarray) -> Documents:
    """Held-out documents without the lines that share a window with the training text; empty ones are dropped."""
    cleaned = [sources.Document(d.id, overlap.without_shared_lines(d.text, known)) for d in held_out]
    return [document for document in cleaned if len(document.text) > overlap.WINDOW]


def write_documents(path: Path, documents: Documents) -> None:
    """One JSON object {"id", "text"} a line, xz-compressed."""
    lines = (json.dumps({"id": d.id, "text": d.text}, ensure_ascii=False) + "\n" for d in documents)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress("".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME))


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE that splits digits and gives every text back exactly."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=SEPARATOR, pad_token=SEPARATOR, clean_up_tokenization_spaces=False
    )


def row(path: Path, source: sources.Source, version: str, role: str, documents: Documents) -> str:
    """A file's row of the table in data/README.md."""
    size = sum(len(document.text) for document in documents)
    counts = f"{len(documents)} documents | {size:,} characters"
    return f"| `{path}` | {role} | {source.text} | `{source.package}` {version} | {source.licence} | {counts} |\n"


def copy_licence(unpacked: Path, package: str, folder: Path) -> None:
    """The package's own statement of copyright and licence, beside the text it covers."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(unpacked / "usr/share/doc" / package / "copyright", folder / f"{package}.txt")


def write_table(readme: Path, rows: list[str]) -> None:
    """Puts the rows between the two markers of the README, leaving all else as it is."""
    head = "| file | holds | text | Debian package | licence | documents | size |\n|-|-|-|-|-|-|-|\n"
    text, found = TABLE.subn(lambda _: head + "".join(rows), readme.read_text(encoding="utf-8"))
    if found != 1:
        raise ValueError(f"{readme} must hold the markers `<!-- corpus: begin -->` and `<!-- corpus: end -->` once")
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("unpacked", type=Path, help="the folder that the Debian packages were unpacked into")
    build(parser.parse_args().unpacked, DATA)
