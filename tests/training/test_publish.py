import re

import pandas as pd
import pytest

from srdyn.loading import files
from srdyn.training import publish


@pytest.fixture
def run(tmp_path):
    """A finished run with two observed steps."""
    folder = tmp_path / "runs" / "hybrid"
    (folder / "final").mkdir(parents=True)
    (folder / "final/model.safetensors").write_bytes(b"final")
    (folder / "log.csv").write_text("step\n1\n")
    (folder / "record.json").write_text("{}")
    (folder / "spectra").mkdir()
    for step in (0, 2):
        table = pd.DataFrame({"step": [step], "rank": [3.0], "uncertain": [False]})
        files.keep(folder / "spectra" / f"step-{step:06d}.unit", table.to_parquet())
    return folder


def test_a_finished_run_is_published_whole(run, tmp_path):
    target = tmp_path / "models" / "hybrid"
    publish.publish(run, target)
    assert (target / "model.safetensors").read_bytes() == b"final"
    assert (target / "log.csv").read_text() == "step\n1\n"
    assert pd.read_parquet(target / "spectra.parquet")["step"].tolist() == [0, 2]
    assert [path.name for path in target.parent.iterdir()] == ["hybrid"]


def test_an_unfinished_run_is_refused_and_nothing_is_lost(run, tmp_path):
    target = tmp_path / "models" / "hybrid"
    publish.publish(run, target)
    (run / "final" / "model.safetensors").unlink()
    (run / "final").rmdir()
    with pytest.raises(FileNotFoundError, match="no finished model"):
        publish.publish(run, target)
    assert (target / "model.safetensors").read_bytes() == b"final"


def test_spectra_with_a_flipped_bit_are_not_published(run, tmp_path):
    path = run / "spectra" / "step-000002.unit"
    whole = path.read_bytes()
    for place in range(0, len(whole), 211):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"step-000002\.unit is broken"):
            publish.publish(run, tmp_path / "models" / "hybrid")


def test_another_model_and_what_was_added_stay(run, tmp_path):
    other, target = tmp_path / "models" / "other", tmp_path / "models" / "hybrid"
    other.mkdir(parents=True)
    (other / "model.safetensors").write_bytes(b"precious")
    for _ in range(2):
        publish.publish(run, target)
    (target / "notes.txt").write_text("precious")
    for folder, named in ((other, "model.safetensors"), (target, "notes.txt")):
        with pytest.raises(FileExistsError, match=re.escape(named)):
            publish.publish(run, folder)
    assert (other / "model.safetensors").read_bytes() == b"precious"
    assert (target / "notes.txt").read_text() == "precious"
