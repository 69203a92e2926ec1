"""What a run needs, estimated before it starts: `python -m srdyn.plan NAME`, for a preset, a folder or a hub name.

That of a preset depends on no machine and stands in its file: sizes from the configuration, times from rates below.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from srdyn import models
from srdyn.loading import devices, files, presets, refusals, report

_GPU_MEMORY, _SMALL_GPU = 80e9, 24e9
_GPU_RATE, _CORE_RATE = 50e12, 50e9
"""Sustained operations a second, assumed: a twentieth of a data-centre GPU's bfloat16 peak, since experts and chunks
are small; half of what one core was measured to do in a float32 product."""
_DISK_RATE = 1e9  # bytes a second read from a solid-state disk, assumed
_SPECTRUM = 1e-3 / 128**3  # seconds on one core for a spectrum in float64, over K·V·min(K, V): measured at 128 × 128
_SOURCES = 3  # spectra are taken of the model, of the mechanism and of the common decay


def of_preset(name: str) -> str:
    """What the notebooks 01, 02 and 05 need under a preset, as comments for its file."""
    reference, chosen = (presets.read(x) for x in ("reference", name))
    values = presets.over(reference["01_stratification"], chosen, f"preset {name}")
    lines = [f"Estimated by `python -m srdyn.plan {name}`:"]
    for model in values["models"]:
        known = files.data_dir() / "geometry" / Path(model).name  # some of the hub's configurations, kept here
        place = known if known.is_dir() else model
        lines += _of_model(models.check(place, dtype=torch.bfloat16, device="cpu"), values)
    return "\n".join(f"# {line}" for line in lines)


def _of_model(about: report.Report, values: dict) -> list[str]:
    """One model's lines; a model that srdyn cannot study has only the reason."""
    if not about.linear:
        return [f"{about.name}: {' '.join(about.unsupported)}"]
    tokens, cache = next(iter(about.cache_bytes.items()))
    layer = devices.STREAMED * about.layer_bytes
    streamed, on_cpu, weights = map(devices.in_words, (layer, 2 * layer, about.weight_bytes))
    room = 1.1 * about.weight_bytes  # a tenth to spare
    count = math.ceil(room / _GPU_MEMORY)
    gpus = "one GPU of 24 GB" if room < _SMALL_GPU else f"{count} GPU{'s' * (count > 1)} of 80 GB"
    contexts = sum(len(values[kind]) for kind in ("domains", "tasks", "attacks"))
    n, positions = values["n"], values["positions"]
    work, spectra = 2 * about.active * contexts * n * positions[-1], contexts * n * len(positions) * _SOURCES
    cost = sum(x.layers * x.heads * x.K * x.V * min(x.K, x.V) for x in about.linear) * _SPECTRUM
    return [
        f"{about.name}: {report.count(about.parameters)} parameters, {report.count(about.active)} for a token,",
        f"  {'; '.join(map(str, about.linear))}:",
        f"  {report.in_mib(about.state_bytes)} of state, {report.in_mib(cache)} of cache after {tokens} tokens.",
        f"Memory: {weights} of weights in bfloat16, {gpus};",
        f"  or a GPU with {streamed} free, to which they come layer by layer from CPU memory or disk;",
        f"  or no GPU: twice as much in float32, or from disk with {on_cpu} free.",
        f"Time of 01, 02 and 05, which read {contexts} contexts of {n} × {positions[-1]} tokens, a pass each:",
        f"  {work:.1e} operations, {_in_time(work / _GPU_RATE)} on a GPU, {_in_time(work / _CORE_RATE)} on a CPU core;",
        f"  {_in_time(contexts * about.weight_bytes / _DISK_RATE)} of reading where the weights stay on disk;",
        f"  {spectra * about.heads:,} spectra, nulls included, {_in_time(spectra * cost)} on a CPU core.",
    ]


def _in_time(seconds: float) -> str:
    unit, size = next((u, s) for u, s in (("h", 3600), ("min", 60), ("s", 1)) if seconds >= s or u == "s")
    return f"{seconds / size:.2g} {unit}" if seconds / size < 10 else f"{seconds / size:.0f} {unit}"


@refusals.door()
def main(words: Sequence[str] | None = None) -> None:
    """Print the plan; the exit status is 1 where the model cannot be studied here."""
    parser = argparse.ArgumentParser(prog="python -m srdyn.plan", description=__doc__.splitlines()[0])
    parser.add_argument("name", metavar="NAME", help="a preset, a folder with config.json, or a hub name")
    name = parser.parse_args(words).name
    is_place = "/" in name  # which no preset has; looking for one wants the repository
    about = models.check(name) if is_place or presets.path(name) is None else None
    print(about or of_preset(name))
    sys.exit(bool(about and about.unsupported))


if __name__ == "__main__":
    main()
