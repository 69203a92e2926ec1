"""Malformed inputs of every kind, drawn with a seed, and what comes of them.

`python tests/nonsense.py FOLDER SEED EVERY` works in FOLDER, which holds a clone under `clone` and a tiny model under
`tiny`, and prints a line of JSON for every EVERY-th input: its kind, what it is, its outcome. A process of its own,
since the hooks that check shapes in tests would stop much of it before srdyn does.
"""

import contextlib
import io
import itertools
import json
import logging
import lzma
import os
import random
import shutil
import signal
import struct
import sys
import traceback
import warnings
from functools import cache, partial
from pathlib import Path

import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

from srdyn import ablation, contexts, models, passport, plan, prune, pruning, scores, spectra, states, strata
from srdyn.loading import refusals
from srdyn.study import reproduce
from srdyn.study.claims import registration
from srdyn.study.run import store
from srdyn.study.survey import __main__ as survey
from srdyn.text import documents
from srdyn.training import train

PATIENCE = 60
"""Seconds after which an input counts as hanging."""
STRANGE = ("x", "", -1, 0, 1.5, None, [], {}, [1, 2], True, 10**12, 10**20, float("nan"), [[[]]], {"a": 1}, "9" * 99)
SIZES = (
    "hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "linear_num_value_heads", "linear_num_key_heads", "linear_key_head_dim", "linear_value_head_dim",
    "linear_conv_kernel_dim", "intermediate_size",
)  # fmt: skip


class Hangs(BaseException):
    """Longer than `PATIENCE`."""


def ours(error):
    """Whether srdyn raised the error with a `raise` of its own, and said it in one line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    package = str(Path(models.__file__).parent)
    if isinstance(error, OSError) and error.filename:
        return True  # the system's words, with the file
    in_one_line = "\n" not in str(error) and str(error).strip() != ""
    return isinstance(error, refusals.MENDED_BY_USERS) and last.filename.startswith(package) and in_one_line


def outcome(act, *, refused):
    """`refused` with our words, `accepted`, or what is wrong: `raw`, `hangs`, `accepted nonsense`."""
    signal.alarm(PATIENCE)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as told:
            act()
        return ("accepted nonsense" if refused else "accepted"), ""
    except Hangs:
        return "hangs", ""
    except SystemExit as left:
        said = [line for line in told.getvalue().splitlines() if not line.startswith(("usage:", " "))]
        said += [left.code] if isinstance(left.code, str) else []
        return ("refused" if left.code not in (0, None) and len(said) == 1 else "raw"), " | ".join(said)
    except Exception as error:  # noqa: BLE001, that is what is asked
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {str(error)[:300]} [{Path(where.filename).name}:{where.lineno}]"
        return ("refused" if ours(error) else "raw"), told
    finally:
        signal.alarm(0)


class Cases:
    """Malformed inputs: each method that `KINDS` names yields (what it is, act, whether it must be refused)."""

    def __init__(self, folder, seed):
        self.folder, self.random = folder, random.Random(seed)
        self.clone, self.tiny, self.count = folder / "clone", folder / "tiny", 0

    def changed(self, name=None, content=None, *, tokenizer=False):
        """A copy of the tiny model in which one file holds something else."""
        self.count += 1
        place = self.folder / "inputs" / f"m{self.count}"
        shutil.copytree(self.tiny, place, ignore=None if tokenizer else shutil.ignore_patterns("tokenizer*"))
        if name is not None:
            (place / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return place

    def file(self, name, content=b""):
        self.count += 1
        place = self.folder / "inputs" / f"f{self.count}-{name}"
        place.write_bytes(content if isinstance(content, bytes) else content.encode())
        return place

    def each(self, name, contents, *, act=None, refused=True, tokenizer=False):
        """The tiny model, `name` holding each of the contents in turn, as it `reads`, or as `act` would have it."""
        for what, content in contents.items():
            yield what, (act or reads)(self.changed(name, content, tokenizer=tokenizer)), refused

    def emptied(self):
        place = self.changed()
        (place / "model.safetensors").unlink()
        return place

    def stored(self, tensors):
        place = self.emptied()
        save_file(tensors, place / "model.safetensors", {"format": "pt"})
        return place

    def broken(self, content):
        """The same bytes cut off, with a bit flipped, with others in the middle."""
        for _ in range(4):
            at = self.random.randrange(len(content))
            yield "cut off", content[:at]
            flipped = bytes([content[at] ^ 1 << self.random.randrange(8)])
            yield "a bit flipped", content[:at] + flipped + content[at + 1 :]
            yield "noise inside", content[:at] + self.random.randbytes(9) + content[at:]

    def configurations(self):
        stated = json.loads((self.tiny / "config.json").read_bytes())
        for name in SIZES:
            for value in self.random.sample(STRANGE, 4):
                yield f"{name} = {value!r:.20}", reads(self.changed("config.json", stated | {name: value})), False
        for name in self.random.sample(sorted(stated.keys() - {*SIZES}), 20):
            value = self.random.choice(STRANGE)
            yield f"{name} = {value!r:.20}", reads(self.changed("config.json", stated | {name: value})), False
        whole = {
            "no JSON": b"{", "empty": b"", "a list": b"[]", "a number": b"7", "not UTF-8": b"\xff\xfe{}",
            "deep": b'{"a":' * 99999 + b"1" + b"}" * 99999, "no type": {"hidden_size": 8}, "a text": b'"qwen3_next"',
            "null": b"null", "unknown type": {"model_type": "x"}, "type is a number": {"model_type": 3},
            "no model": {"model_type": "clip"},
            "type is a list": {"model_type": ["qwen3_next"]}, "type alone, huge": stated | {"num_hidden_layers": 10**9},
            "marked twice": stated | {"srdyn_model_type": "x"}, "marked, a list": stated | {"srdyn_model_type": []},
            "int8 quantised": stated | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
            "quantised by x": stated | {"quantization_config": {"quant_method": "x"}},
            "quantised": stated | {"quantization_config": 3},
        }  # fmt: skip
        yield from self.each("config.json", whole)
        for what, content in self.broken((self.tiny / "config.json").read_bytes()):
            yield what, reads(self.changed("config.json", content)), False

    def kept_heads(self):
        stated = json.loads((self.tiny / "config.json").read_bytes())
        values = [
            3, "x", [], [[0]], {"0": 3}, {"0": "x"}, {"0": [99]}, {"0": [-1]}, {"0": [0, 0]}, {"0": [1, 0]}, {"9": [0]},
            {"x": [0]}, {"0": [1.5]}, {"0": [None]}, {"0": {"a": 1}}, {"3": [0]}, {"0": [True]}, {"0": None}, {"": [0]},
            {"0": [10**20]}, {"0": [[0]]}, {"-1": [0]}, {"0": ["0"]},
        ]  # fmt: skip
        for value in values:
            marked = {"srdyn_kept": value, "srdyn_model_type": stated["model_type"], "model_type": "pruned"}
            yield f"srdyn_kept = {value!r}", reads(self.changed("config.json", stated | marked)), True

    def weights(self):
        name, path = "model.safetensors", self.tiny / "model.safetensors"
        content, size = path.read_bytes(), struct.unpack("<Q", path.read_bytes()[:8])[0]
        header = json.loads(content[8 : 8 + size])
        first = next(key for key in header if key.endswith("in_proj_qkvz.weight"))

        def with_header(changed):
            text = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
            return struct.pack("<Q", len(text)) + text + content[8 + size :]

        for field, value in [
            ("dtype", "X"), ("dtype", 3), ("dtype", "I8"), ("shape", [1]), ("shape", "x"), ("shape", [-1, 2]),
            ("shape", [2**40, 2**40]), ("data_offsets", [5, 1]), ("data_offsets", [0, 10**15]), ("data_offsets", "x"),
            ("data_offsets", [0, 4]), ("dtype", "F64"),
        ]:  # fmt: skip
            changed = with_header(header | {first: header[first] | {field: value}})
            yield f"header: {field} = {value!r}", reads(self.changed(name, changed)), True
        headers = {
            "empty": b"", "no JSON": b"{" * 50, "a list": b"[]", "deep": b'{"a":' * 9999, "not UTF-8": b"\xff" * 40,
            "no tensors": b"{}",
        }  # fmt: skip
        files = {f"header: {what}": with_header(text) for what, text in headers.items()}
        files |= {"header: too long": struct.pack("<Q", 2**60) + content[8:], "empty": b"", "text": b"hello" * 100}
        yield from self.each(name, files | {"cut off": content[: -self.random.randrange(1, 999)]})
        for what, damaged in self.broken(content[: 8 + size]):
            yield f"header: {what}", reads(self.changed(name, damaged + content[8 + size :])), False
        tensors = load_file(path)
        dtypes = (torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64, torch.bool)
        others = {f"{dtype} weights": tensors[first].to(dtype) for dtype in dtypes}
        others |= {"a tensor transposed": tensors[first].T.contiguous(), "a tensor flat": tensors[first].flatten()}
        for what, other in others.items():
            yield what, reads(self.stored(tensors | {first: other})), True
        for what, value in [("NaN", torch.nan), ("infinite", torch.inf)]:
            yield what, loads(self.stored(tensors | {first: tensors[first] * value})), True
        yield "a tensor too few", reads(self.stored({k: v for k, v in tensors.items() if k != first})), True
        instead = {
            "none": lambda path: None, "a FIFO": os.mkfifo, "a folder": Path.mkdir,
            "pickled": lambda path: torch.save(tensors, path.with_name("pytorch_model.bin")),
            "an endless file": lambda path: path.symlink_to("/dev/zero"),
        }  # fmt: skip
        for what, put in instead.items():
            place = self.emptied()
            put(place / name)
            yield what, reads(place), True

    def indices(self):
        names = list(load_file(self.tiny / "model.safetensors"))
        good = {"metadata": {}, "weight_map": dict.fromkeys(names, "model.safetensors")}
        first, secret = names[0], self.file("secret.safetensors", (self.tiny / "model.safetensors").read_bytes())
        yield from self.each("model.safetensors.index.json", {
            "no JSON": b"{", "a list": [], "a number": 3, "no map": {}, "map a list": {"weight_map": names},
            "map a text": {"weight_map": "x"}, "map a number": {"weight_map": 4}, "map null": {"weight_map": None},
            "file a number": {"weight_map": {first: 3}}, "file null": {"weight_map": {first: None}},
            "file a list": {"weight_map": {first: ["x"]}}, "file gone": {"weight_map": {first: "gone.safetensors"}},
            "file empty": {"weight_map": {first: ""}}, "empty map": {"weight_map": {}},
            "deep": b'{"weight_map":' * 9999, "not UTF-8": b"\xff\xfe",
            "outside": {"weight_map": dict.fromkeys(names, f"../{secret.name}")},
            "absolute": {"weight_map": dict.fromkeys(names, str(secret))},
            "a folder": {"weight_map": dict.fromkeys(names, ".")},
            "too many names": good | {"weight_map": good["weight_map"] | {"x": "gone.safetensors"}},
        })  # fmt: skip

    def tokenizers(self):
        text = (self.tiny / "tokenizer.json").read_bytes()
        about = json.loads((self.tiny / "tokenizer_config.json").read_bytes())
        yield from self.each("tokenizer.json", {
            "no JSON": b"{", "empty": b"", "a list": b"[]", "no model": b"{}", "model null": b'{"model": null}',
            "not UTF-8": b"\xff\xfe", "deep": b"[" * 99999, "a number": b"3", "model a text": b'{"model": "x"}',
        }, act=loads, tokenizer=True)  # fmt: skip
        for what, content in self.broken(text[:3000]):
            place = self.changed("tokenizer.json", content + text[3000:], tokenizer=True)
            yield what, loads(place), False
        yield from self.each("tokenizer_config.json", {
            "settings: no JSON": b"{", "settings: a list": b"[]", "settings: a number": b"3",
            "settings: class": about | {"tokenizer_class": "X"}, "settings: class 3": about | {"tokenizer_class": 3},
            "settings: tokens": about | {"added_tokens_decoder": "x"}, "settings: eos": about | {"eos_token": [3]},
            "settings: length": about | {"model_max_length": "x"}, "settings: pad": about | {"pad_token": {"a": 1}},
        }, act=loads, tokenizer=True, refused=False)  # fmt: skip

    def presets(self):
        bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)) + "domains: *a8\n"
        place = self.clone / "notebooks" / "presets"
        texts = {
            "no YAML": "a: [", "a list": "[a, b]", "a text": "hello", "a number": "3", "unknown key": "nn: 3",
            "key a number": "3: 4", "key a list": "? [a]\n: 3", "key null": "null: 3", "n a text": "n: many",
            "n a list": "n: [3]", "n null": "n:", "n negative real": "n: -1.5", "models a text": "models: ../data",
            "models numbers": "models: [3]", "eps a text": "eps: small", "domains a mapping": "domains: {a: b}",
            "positions reals": "positions: [1.9]", "positions texts": "positions: [a]",
            "python": "n: !!python/object:os.x",
            "a tag": "n: !x 3", "alias": "n: *nothing", "twice": "n: 3\nn: {", "bomb": bomb, "control": "n: \x07",
            "deep": "n: " + "[" * 5000, "n nan": "n: .nan", "n true": "n: true", "itself": "domains: &a [*a]",
            "seed a date": "seed: 2020-01-01", "eps infinite": "eps: .inf", "eps nan": "eps: .nan",
        }  # fmt: skip
        for i, (what, text) in enumerate(texts.items()):
            (place / f"strange{i}.yaml").write_text(text)
            yield what, partial(reproduce.main, ["01_stratification", "--preset", f"strange{i}"]), True
            yield f"plan: {what}", partial(commanded, plan, [f"strange{i}"]), True
        (place / "raw.yaml").write_bytes(b"n: \xff\xfe")
        yield "not UTF-8", partial(reproduce.main, ["--preset", "raw"]), True
        os.mkfifo(place / "fifo.yaml")
        yield "a FIFO", partial(reproduce.main, ["--preset", "fifo"]), True
        yield "plan: a FIFO", partial(commanded, plan, ["fifo"]), True

    def parameters(self):
        for text in [
            "n", "=3", "n=", "n=[", "n=x", "n=-1.5", "3=4", "nn=3", "n=[1]", "models=3", "models=[3]", "n={", "n=!!x 3",
            "n=.nan", "eps=x", "positions=[1.9]", "positions=x", "n=4 n", "seed=[", "domains=[3]", "n=3 m=4", "a b c",
            "n=" + "[" * 3000, "eps=.inf",
        ]:  # fmt: skip
            yield f"P={text!r:.30}", partial(reproduce.main, ["01_stratification", "--set", text]), True
        strange = ["../reference", "/etc/passwd", "presets/smoke.yaml", "", ".", "a/b", "no such", "smoke\n", "~", "*"]
        for name in strange:
            yield f"PRESET={name!r}", partial(reproduce.main, ["--preset", name]), True
            yield f"survey {name!r}", partial(survey.main, [name]), True
        for name in ["../01_stratification", "/etc/passwd", "notebooks/01_stratification.ipynb", "", "x", "01"]:
            yield f"ONLY={name!r}", partial(reproduce.main, [name]), True
        for name in ["", "../x", "/tmp", "a b", "a/b", "."]:
            yield f"SRDYN_RUN={name!r}", partial(self.named, name), True

    def named(self, name):
        os.environ["SRDYN_RUN"] = name
        try:
            store.build_dir()
        finally:
            del os.environ["SRDYN_RUN"]

    def claims(self):
        text = (self.clone / "data/paper/claims.yaml").read_text()
        paper = yaml.safe_load(text)

        def with_claim(**changed):
            return yaml.safe_dump(paper | {"claims": [paper["claims"][0] | changed, *paper["claims"][1:]]})

        def with_measure(**changed):
            first = dict(paper["claims"][1])
            first["measures"] = [first["measures"][0] | changed, *first["measures"][1:]]
            return yaml.safe_dump(paper | {"claims": [paper["claims"][0], first, *paper["claims"][2:]]})

        in_measure = {
            "threshold nan": {"rule": {"at_least": float("nan")}}, "no rule": {"rule": {}}, "name null": {"name": None},
            "threshold infinite": {"rule": {"at_least": float("inf")}}, "rule a list": {"rule": [1]},
            "threshold text": {"rule": {"at_least": "x"}}, "two rules": {"rule": {"at_least": 0.9, "at_most": 1}},
            "rule strange": {"rule": {"x": 1}}, "gate a text": {"gate": "x"}, "unit null": {"unit": None},
            "heads a text": {"heads_per_layer": "x"},
        }  # fmt: skip
        in_claim = {
            "measures a text": {"measures": "x"}, "measures numbers": {"measures": [3]}, "paper a list": {"paper": [1]},
            "grade Z": {"paper": {"value": "x", "grade": "Z", "place": "x"}}, "notebook null": {"notebook": None},
            "grade a list": {"paper": {"value": "x", "grade": ["A"], "place": "x"}}, "id a list": {"id": [1]},
            "id twice": {"id": paper["claims"][1]["id"]}, "id null": {"id": None}, "extra key": {"x": 1},
            "statement a number": {"statement": 3}, "second a list": {"second": [1]}, "second null": {"second": {}},
        }  # fmt: skip
        above = {
            "primary unknown": {"primary": {"claim": "C99"}}, "primary a text": {"primary": "x"},
            "primary empty": {"primary": {}}, "thresholds nan": {"thresholds": {"low": float("nan")}},
            "thresholds a list": {"thresholds": [1]}, "claims a text": {"claims": "x"}, "paper a text": {"paper": "x"},
            "claims numbers": {"claims": [1, 2]}, "title null": {"paper": {"title": None, "reference": "x"}},
        }  # fmt: skip
        texts = {"no YAML": "a: [", "empty": "", "a list": "[]", "a text": "x", "no claims": "title: x"}
        texts |= {what: with_measure(**changed) for what, changed in in_measure.items()}
        texts |= {what: with_claim(**changed) for what, changed in in_claim.items()}
        texts |= {what: yaml.safe_dump(paper | changed) for what, changed in above.items()}
        for what, changed in texts.items():
            yield what, partial(self.stated, changed), True

    def stated(self, text):
        path = registration.path()
        kept = path.read_bytes()
        path.unlink()
        path.write_text(text)
        try:
            registration.load()
        finally:
            path.write_bytes(kept)

    def documents(self):
        line = json.dumps({"text": "a text"}) + "\n"
        made = {
            "a.txt": b"", "b.txt": b"   \n", "c.txt": b"\xff\xfe\x00", "d.jsonl": b"{", "e.jsonl": b"[]\n",
            "f.jsonl": b"3\n", "g.jsonl": b'{"text": 3}\n', "h.jsonl": b'{"x": "y"}\n', "j.jsonl": b"null\n",
            "i.jsonl": line.encode() + b"\xff", "k.jsonl.xz": b"no xz", "m.jsonl.xz": lzma.compress(b"\xff"),
            "l.jsonl.xz": lzma.compress(line.encode())[:-9],
            "n.pdf": b"%PDF", "o.jsonl": b"[" * 99999, "p.jsonl.xz": b"", "q.jsonl": b'{"text": ""}\n', "r": b"text",
        }  # fmt: skip
        for name, content in made.items():
            yield name, partial(documents.read, self.file(name, content)), True
        folder = self.folder / "inputs" / "documents"
        folder.mkdir()
        yield "an empty folder", partial(documents.read, folder), True
        os.mkfifo(folder / "fifo.txt")
        yield "a folder with a FIFO", partial(documents.read, folder), True
        yield "its hash", partial(documents.content_hash, folder), True
        (self.folder / "inputs/zero.txt").symlink_to("/dev/zero")
        (self.folder / "inputs/zero.jsonl").symlink_to("/dev/urandom")
        (self.folder / "inputs/loop.txt").symlink_to("loop.txt")
        for name in ("zero.txt", "zero.jsonl", "loop.txt"):
            yield f"endless {name}", partial(documents.read, self.folder / "inputs" / name), True
            yield f"hash of {name}", partial(documents.content_hash, self.folder / "inputs" / name), True
        bomb = self.file("bomb.jsonl.xz")
        with lzma.open(bomb, "wb", preset=0) as packed:
            for _ in range(300):
                packed.write(bytes(2**20))
        yield "a bomb", partial(documents.read, bomb), True
        for name in ["nowhere.txt", "hf:", "hf:a:b:c:d:e", "/", "a/\x00b", "x" * 5000 + ".txt"]:
            yield f"{name!r:.30}", partial(documents.read, name), True
        given = {"tokenizer": small(self.tiny).tokenizer, "n": 1, "length": 8, "generator": torch.Generator()}
        for name in ["", "no such domain", "../prose", "prose\n"]:
            yield f"domain {name!r}", partial(contexts.domain, name, **given), True

    def tokens(self):
        model, good = small(self.tiny), torch.zeros(1, 8, dtype=torch.long)
        for dtype in (torch.uint8, torch.int16, torch.int32, torch.int8):
            yield f"{dtype}", partial(states.trace, model, good.to(dtype), [8]), False
        strange = {
            "real": good.float(), "complex": good.to(torch.complex64), "bool": good.bool(), "empty": good[:, :0],
            "flat": good[0], "negative": good - 1, "beyond": good + 10**6, "none": good[:0], "deep": good[None],
            "a list": [[1, 2]], "a text": "x", "null": None, "half": good.half(), "array": good.numpy(),
        }  # fmt: skip
        for what, tokens in strange.items():
            yield what, partial(states.trace, model, tokens, [8]), True
            yield f"gates: {what}", partial(states.gates, model, tokens), True
        for positions in [
            [1.9], [0], [-1], [9], [3, 2], [2, 2], [], ["a"], [None], "x", 3, [float("nan")], [[1]], [10**20],
            torch.tensor([1.5]), torch.tensor([]), torch.tensor(3), torch.tensor([[1]]), [1, 2.0001],
        ]:  # fmt: skip
            yield f"positions {positions!r:.30}", partial(states.trace, model, good, positions), True
        yield "route", partial(states.trace, model, good, [8], route="x"), True
        mask = torch.ones(1, 8, dtype=torch.long)
        mask[:, 5:] = 0
        yield "padding", partial(padded, model, good, mask), True

    def arrays(self):
        model, keep = small(self.tiny), torch.ones(3, 8, dtype=torch.bool)
        masks = {"int": keep.long(), "shape": keep[:2], "flat": keep[0], "real": keep.float(), "a list": [[True]]}
        masks |= {"null": None}
        for what, mask in masks.items():
            yield f"keep {what}", partial(pruning.prune_heads, model, mask), True
            yield f"ablate {what}", partial(entered, ablation.ablate_heads, model, mask), True
        score = torch.rand(3, 8, generator=torch.Generator().manual_seed(0))
        for options in [
            {"fraction": -0.1}, {"fraction": 1.1}, {"fraction": float("nan")}, {"fraction": 0.5, "groups": 3},
            {"fraction": 0.5, "groups": 0}, {"fraction": 0.5, "whole": 0}, {"fraction": 0.5, "tp": 0},
            {"fraction": 0.5, "uniform": True, "tp": 99}, {"fraction": 0.5, "tp": -3}, {"fraction": 0.5, "whole": 5},
        ]:  # fmt: skip
            yield f"select {options}", partial(pruning.select, score, **options), True
        for alpha in (-1.0, 2.0, float("nan")):
            yield f"alpha {alpha}", partial(pruning.saturation_score, score, score, 8, alpha), True
        yield "shapes", partial(pruning.saturation_score, score, score[:2], 8), True
        yield "rank above d", partial(pruning.saturation_score, score + 9, score, 8), True
        yield "d of 0", partial(pruning.saturation_score, score * 0, score, 0), True
        yield "no head", partial(pruning.select, score[:0], 0.5), False
        state = torch.rand(2, 3, 4)
        for what, x in {
            "bfloat16": state.bfloat16(), "half": state.half(), "int": state.int(), "NaN": state * torch.nan,
            "infinite": state * torch.inf, "complex": state.to(torch.complex64), "flat": state[0, 0],
        }.items():  # fmt: skip
            yield f"state {what}", partial(spectra.singular_values, x), True
        for eps in (0, 1, -1.0, float("nan"), 2):
            yield f"eps {eps}", partial(spectra.effective_rank, state.double(), eps), True
        table = partial(strata.head_table, torch.rand(2, 1, 3, 4, 5).double(), context="x", model="m", seed=0)
        yield "table positions", partial(table, positions=[1], layers=[0, 1]), True
        yield "table layers", partial(table, positions=[1, 2, 3], layers=[0]), True
        yield "agreement", partial(strata.agreement, score[0].numpy(), score[0, :3].numpy()), True
        for alpha in (0.3, 7.0, float("nan")):
            yield f"joint rule {alpha}", partial(scores.joint_rule, alpha), True

    def folders(self):
        model = small(self.tiny)
        for what, content in {"a list": [], "no JSON": b"{", "a number": 3, "deep": b"[" * 99999, "null": None}.items():
            place = self.changed("srdyn_files.json", content)
            yield f"save over: {what}", partial(pruning.save, model, place), True
        yield "save over a file", partial(pruning.save, model, self.file("x")), True
        yield "save under a file", partial(pruning.save, model, self.file("x") / "y"), True

    def commands(self):
        tiny, there = str(self.tiny), str(self.changed(tokenizer=True))
        out = str(self.folder / "out")
        for words in [
            ["nowhere/at/all"], ["./x"], [str(self.file("x"))], ["a b"], [""], ["\x00"], [there + "/config.json"],
            ["x" * 5000], ["/dev/null"], ["../../etc"], ["no-such-model-name"],
        ]:  # fmt: skip
            yield f"plan {words!r:.40}", partial(commanded, plan, words), True
            yield f"prune {words!r:.40}", partial(prune.main, [*words, "--out", out]), True
            yield f"passport {words!r:.40}", partial(passport.main, [*words, "--out", out]), True
        short = ["--text", "prose", "--length", "16", "--n", "1"]
        for words in [
            ["--share", "2"], ["--share", "nan"], ["--share", "x"], ["--n", "0"], ["--n", "-1"], ["--n", "99999999"],
            ["--length", "0"], ["--length", "x"], ["--length", "99999999"], ["--tp", "0"], ["--tp", "99"],
            ["--heal", "-1"], ["--device", "x"], ["--device", "cuda:77"], ["--offload", "cpu"], ["--text", "x"],
            ["--text", "./no.txt"], ["--rule", "x"], ["--rate", "nan", "--heal", "1"], ["--seed", "x"],
        ]:  # fmt: skip
            yield f"prune {words}", partial(prune.main, [tiny, "--out", out, *short, *words]), True
        not_json = [str(self.file("x.json", text)) for text in ("{", "[]", "{}", '{"schema": 3}', "[" * 99999)]
        for words in [["--n", "0"], ["--length", "0"], ["--device", "x"], ["--removal", "-1"], ["--text", "x"]]:
            yield f"passport {words!r:.60}", partial(passport.main, [tiny, "--out", out, *short, *words]), True
        for path in ["nowhere.json", *not_json]:
            yield f"passport.read {path}", partial(passport.read, path), True
        for words in [["x"], ["../hybrid"], [""], ["hybrid", "--device", "x"]]:
            yield f"train {words}", partial(commanded, train, words), True


def reads(place):
    """What `plan` says of a folder comes true: what would load does, and can be traced."""

    def act():
        with contextlib.suppress(SystemExit):
            commanded(plan, [str(place)])
        about = models.check(place)
        if about.unsupported:
            raise refusal(about)
        if about.placement is None:
            return models.load(place)  # nothing was promised
        try:
            model = models.load(place)
        except Exception as error:
            raise AssertionError(f"would load, and does not: {error}") from error
        states.trace(model, torch.zeros(1, 4, dtype=torch.long), [4])

    return act


def refusal(about):
    """What the report says is in our words."""
    assert all("\n" not in reason for reason in about.unsupported)
    return SystemExit(about.unsupported[0])


def loads(place):
    """Only opening shows what is wrong."""
    return partial(models.load, place)


def padded(model, tokens, mask):
    with states.watch(model):
        model.hf(tokens, attention_mask=mask, use_cache=True)


def entered(manager, *arguments):
    with manager(*arguments):
        pass


def commanded(module, words):
    """A command whose words are those of the process."""
    kept, sys.argv = sys.argv, ["x", *words]
    try:
        module.main()
    finally:
        sys.argv = kept


@cache
def small(place):
    return models.load(place)


KINDS = (
    "configurations", "kept_heads", "weights", "indices", "tokenizers", "presets", "parameters", "claims", "documents",
    "tokens", "arrays", "folders", "commands",
)  # fmt: skip


def main(folder, seed, every, kinds):
    def stop(*_):
        raise Hangs

    signal.signal(signal.SIGALRM, stop)
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.CRITICAL)
    (folder / "inputs").mkdir()
    reproduce.run_all, reproduce.readme.publish = lambda *_, **__: None, lambda: None  # what is accepted is not run
    model = small(folder / "tiny")
    states.trace(model, torch.zeros(1, 4, dtype=torch.long), [4])  # compiles
    cases, out = Cases(folder, seed), sys.stdout
    for kind in kinds or KINDS:
        for what, act, refused in itertools.islice(getattr(cases, kind)(), 0, None, every):
            found, told = outcome(act, refused=refused)
            print(json.dumps({"kind": kind, "what": what, "outcome": found, "told": told}), file=out, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
