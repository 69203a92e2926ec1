"""Where an optional package is absent, all works that does not need it."""

import json
import subprocess
import sys
import textwrap

import pytest

from srdyn import models, states
from srdyn.loading import files

OPTIONAL = ["fla", "triton", "anywidget", "datasets", "lm_eval", "playwright"]
NEED = {"srdyn.kernels.singular_values_triton": "triton", "srdyn.bench.harness": "lm_eval"}
"""Modules that are nothing without one; no other module may import them before they are asked for."""
PURE = files.data_dir() / "models" / "pure"


def traced(model):
    """Singular values of every head after some tokens, as text that keeps every bit."""
    tokens = model.tokenizer("The key of under is call.", return_tensors="pt").input_ids
    return json.dumps(states.trace(model, tokens, positions=[8]).tolist())


@pytest.mark.parametrize(
    "absent",
    [
        pytest.param(OPTIONAL, id="all"),
        *(pytest.param([name], id=name, marks=pytest.mark.slow) for name in OPTIONAL),
    ],
)
def test_modules_are_imported_states_traced_and_heads_shown(absent):
    script = f"""
        import importlib, json, pkgutil, sys
        import srdyn
        sys.modules |= dict.fromkeys({absent})  # importing one raises
        failed = []
        for module in pkgutil.walk_packages(srdyn.__path__, "srdyn."):
            try:
                importlib.import_module(module.name)
            except ImportError:
                failed.append(module.name)
        sys.path.append("tests")
        import test_absent
        from srdyn.figures import atlas
        model = srdyn.models.load({str(PURE)!r}, device="cpu")
        print(json.dumps(failed), test_absent.traced(model), sep="\\n")
        assert "<iframe" in atlas.show(model, text="The key of under is call.")._repr_html_()
    """
    run = [sys.executable, "-W", "error", "-c", textwrap.dedent(script)]
    done = subprocess.run(run, cwd=files.root(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    failed, sigma = done.stdout.splitlines()
    assert json.loads(failed) == [module for module, needed in sorted(NEED.items()) if needed in absent]
    assert sigma == traced(models.load(PURE, device="cpu"))
