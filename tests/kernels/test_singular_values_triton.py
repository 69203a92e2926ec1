"""Kernels on a machine without a GPU: their arithmetic in Triton's interpreter, their code by its compiler."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

from triton import compile as compiled
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from srdyn.kernels import singular_values_triton

TESTS = Path(__file__).parents[1]


def test_kernels_in_the_interpreter():
    # In a process of its own: Triton's own functions, too, are bound to the interpreter when they are imported.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", "interpreted/kernels.py"]
    run = subprocess.run(
        command, cwd=TESTS, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


def test_kernels_compile_for_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    vectors = dict.fromkeys(("d", "e"), "*fp64")
    numbers = dict.fromkeys(("stride", "row_stride", "column_stride", "M", "N"), "i32")
    first = {"matrices": "*fp32", "unit": "*fp64"} | vectors | numbers
    second = vectors | {"sigma": "*fp64", "N": "i32"}
    for kernel, signature, constants in (
        (singular_values_triton._bidiagonalise, first, {"ROWS": 64, "COLUMNS": 64}),
        (singular_values_triton._bisect, second, {"COLUMNS": 64, "HALVINGS": 56}),
    ):
        source = ASTSource(kernel, signature | dict.fromkeys(constants, "constexpr"), constexprs=constants)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TRITON_DEFAULT_FP_FUSION")  # either choice will do
            warnings.filterwarnings("ignore", "AnnAssign.__init__ missing")  # of Triton 3.7's own on Python 3.13
            program = compiled(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
        assert ".entry" in program.asm["ptx"]
