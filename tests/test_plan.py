"""Presets run what notebooks have, and say what they need as the committed command does."""

import pytest
import torch
import yaml
from transformers import LlamaConfig

from srdyn import models, plan, scores
from srdyn.loading import files

FOLDER = files.root() / "notebooks"
PRESETS = sorted(path.stem for path in (FOLDER / "presets").glob("*.yaml") if path.stem != "reference")


def values(preset):
    return yaml.safe_load((FOLDER / "presets" / f"{preset}.yaml").read_text(encoding="utf-8"))


HUB = [name for name in PRESETS if any("../data" not in model for model in values(name).get("models", ["../data"]))]


@pytest.mark.parametrize("preset", HUB)
def test_values_fit_together(preset):
    chosen = values(preset)
    assert chosen["positions"] == sorted(set(chosen["positions"]))
    assert chosen["positions"][-1] == 2048
    assert set(chosen["cosine_at"]) <= set(range(2, 2049))
    asked = {*chosen["rivals"], *chosen["more"], scores.joint_rule(chosen["alpha"])}
    assert {scores.joint_rule(alpha) for alpha in chosen["alphas"]} <= asked <= set(scores.RULES)


def test_the_paper_s_cut_is_its_448_heads():
    assert round(values("qwen3-next-instruct")["paper_share"] * 1152) == 448


@pytest.mark.parametrize("preset", HUB)
def test_what_a_preset_says_of_its_needs_is_what_the_command_prints(preset):
    text = (FOLDER / "presets" / f"{preset}.yaml").read_text(encoding="utf-8")
    assert plan.of_preset(preset) in text, f"put the output of `python -m srdyn.plan {preset}` into the preset"


def commanded(name, status):
    with pytest.raises(SystemExit) as left:
        plan.main([name])
    assert left.value.code == status


def test_the_command_prints_presets_and_models(capsys):
    commanded("olmo-hybrid", 0)
    assert capsys.readouterr().out == plan.of_preset("olmo-hybrid") + "\n"
    commanded(str(files.data_dir() / "models" / "hybrid"), 0)
    assert "6 Qwen3NextGatedDeltaNet layers of 8 heads, 64 × 64 each" in capsys.readouterr().out


def test_the_command_fails_for_what_cannot_be_studied(capsys, tmp_path):
    LlamaConfig(hidden_size=8, num_attention_heads=2).save_pretrained(tmp_path)
    commanded(str(tmp_path), 1)
    assert "has no linear-attention layers" in capsys.readouterr().out
    commanded("./nowhere", 2)
    assert "./nowhere is not a folder" in capsys.readouterr().err


def test_estimates_are_arithmetic():
    chosen = {"domains": ["code"], "tasks": ["needle"], "attacks": [], "n": 2, "positions": [1, 100]}
    place = files.data_dir() / "geometry" / "Qwen3.5-4B"
    about = models.check(place, dtype=torch.bfloat16, device="cpu")
    text = "\n".join(plan._of_model(about, chosen))
    assert f"{2 * about.active * 2 * 2 * 100:.1e} operations" in text
    # 2 contexts × 2 samples × 2 positions × 3 sources × 768 heads, a millisecond each.
    assert "18,432 spectra, nulls included, 18 s on a CPU core" in text
    assert "8.41 GB of weights in bfloat16, one GPU of 24 GB" in text
    assert "17 s of reading" in text
