"""What is committed is what was written; one digit or one bit that is not is found, and its place named."""

import io
import itertools
import json
import subprocess
import sys
import tarfile

import pandas as pd
import pytest

from srdyn.loading import files
from srdyn.study import recipes, reproduce, verify
from srdyn.study.claims import readme
from srdyn.study.run import code, store

THOROUGH = "data/tables/thorough/03_ablation_claims.csv"
WEIGHTS = "data/models/hybrid/model.safetensors"
FAMILIES = "notebooks/site/families.md"
TABLE = "data/tables/03_ablation_estimates"


def flip(path, at=-1):
    """One bit of one byte."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    files.write_bytes(path, bytes(content))


def change_digit(path, after=""):
    """The first digit after a text."""
    text = path.read_bytes().decode()
    at = next(i for i in range(text.index(after) + len(after), len(text)) if text[i].isdigit())
    files.write_bytes(path, f"{text[:at]}{(int(text[at]) + 1) % 10}{text[at + 1 :]}".encode())


def places(faults):
    return [fault.split(":")[0] for fault in faults]


def test_what_is_committed_is_what_was_written(monkeypatch):
    monkeypatch.setenv("SRDYN_RUN", store.REFERENCE)
    assert list(verify.faults()) == []


def test_digits_and_a_bit_changed_all_at_once_are_each_found(copy):
    change_digit(copy / "README.md", "<!-- scorecard:begin -->")
    change_digit(copy / FAMILIES, "tokens/s on a CPU |\n")
    change_digit(copy / "figures" / "scorecard.md", "---")
    change_digit(copy / THOROUGH, ",0.")
    flip(copy / WEIGHTS)
    found = list(verify.faults())
    assert places(found)[:3] == [WEIGHTS, THOROUGH, THOROUGH]
    assert "figures/scorecard.md" in places(found)
    named = [fault for fault in found if fault.startswith(("README.md", FAMILIES))]
    lines = [(copy / fault.split(":")[0]).read_text().splitlines()[int(fault.split(":")[1]) - 1] for fault in named]
    assert len(lines) == 2
    assert all(line.startswith("| ") for line in lines)
    assert all("where the tables say" in fault for fault in named)


OTHERS = ["contexts/prose.jsonl.xz", "corpus/math.jsonl.xz", "geometry/Olmo-Hybrid-7B/config.json", "paper/claims.yaml"]
OTHERS += ["models/evaluation.csv", "models/uniform/model.safetensors"]
OTHERS += ["tokenizer/tokenizer.json"]


def test_a_digit_of_any_table_and_a_bit_of_any_other_file_is_found(copy):
    wanted = []
    others = [*(copy / "figures").glob("0*"), *(copy / "data" / name for name in OTHERS)]
    for path in sorted([*(copy / "data/tables").rglob("*.*"), *others]):
        change_digit(path, ",") if path.suffix == ".csv" else flip(path)
        wanted.append(path.relative_to(copy).as_posix())
    lists = [name for name in wanted if name.startswith("data/tables/code/py")]
    told = [f"{name}: is not the list of code that its name is the hash of" for name in lists]
    assert len(wanted) > 250
    assert len(lists) > 10
    assert list(itertools.islice(verify.unexplained(), len(told))) == told
    told = [f"{name}: differs from what was recorded" for name in sorted({*wanted} - {*lists})]
    assert sorted(verify.bytes_changed()) == told


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("rule: {below: 0.0}", "rule: {below: 0.5}", "figures/scorecard.md:"),
        ("notebook: 03_ablation", "notebook: 03_oblation", "data/paper/claims.yaml: C8 is decided in 03_oblation"),
    ],
)
def test_a_claim_that_says_something_else_is_found_though_it_was_recorded(copy, before, after, told):
    path = copy / "data/paper/claims.yaml"
    text = path.read_text()
    assert before in text
    files.write_bytes(path, text.replace(before, after).encode())
    verify.record(["*"])
    assert any(fault.startswith(told) for fault in verify.faults())


def test_a_table_changed_together_with_its_side_file_is_found(copy):
    change_digit(copy / f"{TABLE}.csv", "\n")
    side = json.loads((copy / f"{TABLE}.json").read_bytes())
    files.write_json(copy / f"{TABLE}.json", side | {"table": files.file_hash(copy / f"{TABLE}.csv")})
    assert list(verify.tables()) == []
    assert places(verify.bytes_changed()) == [f"{TABLE}.csv", f"{TABLE}.json"]


@pytest.mark.parametrize(
    ("after", "told"),
    [
        ('"code": "', "no list is kept of the code that it names"),
        ('"eps": ', "eps is not what the run reference is given"),
    ],
)
def test_a_digit_of_what_made_a_table_is_found_though_it_was_recorded(copy, after, told):
    assert list(verify.unexplained()) == []
    name = "data/tables/02_consistency_steps.json"
    change_digit(copy / name, after)
    verify.record(["*"])
    assert list(verify.unexplained()) == [f"{name}: {told}"]


def test_what_changed_since_a_table_was_made_is_named(copy, monkeypatch):
    store.save_table(pd.DataFrame({"a": [1]}), "09_mine", meta={"claims": "0"})
    [line] = [line for line in verify.changed_since() if "/09_mine.json" in line]
    assert line.split(": ")[1].startswith("0 of ")
    assert line.endswith(" modules have changed since, no fault: ; so has claims.yaml")
    monkeypatch.setitem(code._SOURCES, "srdyn.study.verify", b"x = 1")
    code._parsed.cache_clear()
    try:
        [line] = [line for line in verify.changed_since() if "/09_mine.json" in line]
    finally:
        monkeypatch.undo()
        code._parsed.cache_clear()
    assert ": 1 of " in line
    assert " modules have changed since, no fault: srdyn.study.verify; so has" in line


@pytest.mark.parametrize(("content", "commit"), [item for item in verify.before().items() if item[1]])
def test_the_commit_of_older_tables_has_the_code_that_they_name(content, commit, tmp_path):
    """Which `git` can say where it has the history."""
    archive = subprocess.run(["git", "archive", commit, "srdyn"], cwd=files.root(), capture_output=True, check=False)
    if archive.returncode:
        pytest.skip("this clone has no such commit")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as held:
        held.extractall(tmp_path, filter="data")
    assert files.content_hash(tmp_path / "srdyn") == content


def test_files_that_went_and_files_that_came_are_found(copy):
    (copy / "data/contexts/prose.jsonl.xz").rename(copy / "data/contexts/verse.jsonl.xz")
    (copy / f"{TABLE}.parquet").write_bytes(b"left over")
    (copy / "data/tables/03_ablation_composition.json").unlink()
    (copy / "data/contexts/.partial.tmp").write_bytes(b"")
    assert places(verify.bytes_changed()) == [
        "data/contexts/prose.jsonl.xz",
        "data/contexts/verse.jsonl.xz",
        "data/tables/03_ablation_composition.json",
        f"{TABLE}.parquet",
    ]
    assert sorted(verify.tables()) == [
        "data/tables/03_ablation_composition.csv: has no side file",
        f"{TABLE}.json: describes 2 tables, not one",
    ]


def test_a_readme_without_its_markers_is_said(copy):
    page = (copy / "README.md").read_text()
    (copy / "README.md").write_text(page.replace("<!-- scorecard:end -->", ""))
    assert any("README.md: cannot be made from the tables" in fault for fault in verify.texts())


def test_a_run_records_what_it_wrote_and_nothing_else(copy):
    before = verify.sums().read_bytes()
    verify.record(["data/tables/03_ablation*", "figures/03_ablation*"])
    assert verify.sums().is_symlink()  # unchanged, it was not even written
    stands = store.load_table("03_ablation_estimates")
    store.save_table(stands.assign(estimate=stands["estimate"] + 0.1), "03_ablation_estimates")
    (copy / "figures/03_ablation_bits.pdf").unlink()
    flip(copy / WEIGHTS)
    flip(copy / THOROUGH)
    verify.record(["data/tables/03_ablation*", "figures/03_ablation*"])
    assert places(verify.bytes_changed()) == [WEIGHTS, THOROUGH]
    changed = set(verify.sums().read_bytes().splitlines()) ^ set(before.splitlines())
    names = {line.split(b"  ")[1].decode() for line in changed}
    assert names == {f"{TABLE}.csv", f"{TABLE}.json", "figures/03_ablation_bits.pdf"}


def test_the_command_names_every_fault_and_fails(copy, monkeypatch, capsys):
    monkeypatch.setattr(readme, "page", lambda name, text: text)
    monkeypatch.setattr(recipes, "PARTS", [])
    monkeypatch.setattr(sys, "argv", ["verify"])
    monkeypatch.setenv("SRDYN_RUN", store.REFERENCE)
    flip(copy / WEIGHTS)
    with pytest.raises(SystemExit, match="1 faults"):
        verify.main()
    told = capsys.readouterr().out
    assert told.startswith(f"{WEIGHTS}: differs from what was recorded\n")
    assert f"\n{TABLE}.csv: hash only, not computed again\n" in told
    assert "\ndata/tables/07_cost_memory.csv: measured by make bench, not computed again\n" in told
    monkeypatch.setattr(sys, "argv", ["verify", "--record", "data/models/*"])
    verify.main()
    monkeypatch.setattr(sys, "argv", ["verify"])
    verify.main()
    assert "files are as recorded" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("run", "stem", "recorded"),
    [
        ("reference", "03_ablation", ["figures/03_ablation*", "data/tables/03_ablation*"]),
        ("reference", "07_cost", ["figures/07_cost*"]),
        ("thorough", "03_ablation", ["data/tables/thorough/03_ablation*"]),
        ("main", "03_ablation", ["data/tables/main/03_ablation*"]),
        ("smoke", "03_ablation", None),
    ],
)
def test_a_committed_run_records_what_each_notebook_writes(run, stem, recorded, tmp_path, monkeypatch):
    told = []
    monkeypatch.setenv("SRDYN_RUN", run)
    monkeypatch.setattr(store, "build_dir", lambda run=None: tmp_path)
    monkeypatch.setattr(reproduce, "_run", lambda stem, given: None)
    monkeypatch.setattr(verify, "record", told.append)
    for _ in range(2):  # the second time it is up to date
        reproduce.run_all({stem: {}})
    assert told == ([] if recorded is None else [recorded])
