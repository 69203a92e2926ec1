"""Trains the reference models: `python -m srdyn.training.train`, resumable at any moment with the same result."""

import argparse
import functools
import io
import logging
import time
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from srdyn import contexts, models, states, strata
from srdyn.architectures import cpu_speedups
from srdyn.kernels import bfloat16
from srdyn.loading import devices, files, folders, reference, refusals, resuming
from srdyn.study.run import store
from srdyn.text import tasks
from srdyn.training import mixture, recipes, rules
from srdyn.training.recipes import Settings

_LOG_EVERY = 20
_SAVE_EVERY = 20
_OUTER = ("embed", "in_proj_ba", "lm_head")
"""Matrices that are no map between hidden vectors: tokens, gates."""
SPECTRA_POSITIONS = (16, 64, 128, 256, 512)
_SPECTRA_WINDOWS = 2  # of 512 tokens from each domain


class Run:
    """One model in training, in a folder of its own that holds all that is needed to go on."""

    def __init__(self, settings: Settings, folder: Path, *, device: str = "auto", bfloat16: bool = False) -> None:
        self.settings, self.folder, device = settings, folder, devices.resolve_device(device)
        self.tokenizer = recipes.tokenizer(settings.reads)
        self.stream = recipes.stream(settings)
        made_by = rules if settings.kind in rules.CLASSES else reference
        hf = made_by.initialise(settings.kind, seed=settings.seed, **settings.options)
        if settings.start:
            hf.load_state_dict(models.load(settings.start, device="cpu").hf.state_dict())
        hf.config.use_cache = False
        hf.config.srdyn_seed, hf.config.srdyn_kind = settings.seed, settings.kind
        hf = hf.to(device)
        self.model = models.from_hf(hf, self.tokenizer, name=settings.name, seed=settings.seed)
        self.bfloat16 = bfloat16 and hf.device.type == "cpu"
        cpu_speedups.use(hf, bfloat16=bfloat16)
        self.optimizers = optimizers(hf)
        self.step = 0
        self.rows: list[dict] = []
        self.started = time.perf_counter()

    def resume(self) -> None:
        """Go back to the last saved step, if there is one."""
        path = self.folder / "state.pt"
        saved = resuming.kept(path, device=self.model.hf.device)
        if saved is None:
            return
        if saved["settings"] != self.settings.record():
            raise ValueError(f"{path} belongs to {saved['settings']}, not to these settings; remove {self.folder}")
        if saved["bfloat16"] != self.bfloat16:
            how = "with" if saved["bfloat16"] else "without"
            raise ValueError(
                f"{path} was trained {how} products in bfloat16, unlike this call: go on with a processor and a "
                f"--float32 like those, or remove {self.folder}"
            )
        self.step, self.rows = saved["step"], saved["rows"]
        self.model.hf.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.started -= self.rows[-1]["seconds"] if self.rows else 0.0

    def save(self) -> None:
        """Write the state and the log of this step, whole or not at all."""
        so_far = {"settings": self.settings.record(), "bfloat16": self.bfloat16, "step": self.step, "rows": self.rows}
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        so_far |= {"model": self.model.hf.state_dict(), "optimizers": optimizers}
        resuming.keep(self.folder / "state.pt", so_far)
        log = pd.DataFrame(self.rows).to_csv(index=False, lineterminator="\n", na_rep="nan")
        files.write_bytes(self.folder / "log.csv", log.encode())

    def train(self, *, until: int | None = None) -> None:
        """Train from the present step to step `until`, by default to the end, then write the model."""
        last = self.settings.steps if until is None else until
        self.model.hf.train()
        with tqdm(total=self.settings.steps, initial=self.step, desc=self.settings.name, mininterval=10) as bar:
            while self.step < last:
                self._observe()
                self._advance()
                bar.update()
                if self.step % _SAVE_EVERY == 0:
                    self.save()
        self.save()
        if self.step == self.settings.steps:
            self._observe()
            self._write_model()

    def _advance(self) -> None:
        batch = mixture.batch(self.step, **self.stream)
        tokens, weights, items = (torch.from_numpy(x).to(self.model.hf.device) for x in batch)
        logits = self.model.hf(tokens, use_cache=False).logits[:, :-1]
        nats = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(len(tokens), -1)
        loss = (nats * weights[:, 1:]).sum() / weights[:, 1:].sum()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.hf.parameters(), self.settings.clip)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"{self.settings.name}: gradient norm {norm} at step {self.step}; lower the rate")
        rate = self.settings.rate(self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.step % _LOG_EVERY == 0 or self.step == self.settings.steps:
            right = logits.detach().argmax(-1) == tokens[:, 1:]
            self._log(loss.item(), float(norm), rate, nats.detach(), right, weights[:, 1:], items[:, 1:])

    def _log(self, loss: float, norm: float, rate: float, nats: Tensor, right: Tensor, weights: Tensor, items: Tensor):
        row = {"step": self.step, "tokens": self.settings.seen(self.step), "length": weights.shape[1] + 1}
        row |= {"rate": rate, "loss": loss, "gradient_norm": norm, "text_nats": float(nats[weights == 1.0].mean())}
        for kind, item in tasks.KINDS.items():
            row[kind] = float(right[items == item].float().mean()) if (items == item).any() else float("nan")
        self.rows.append(row | {"seconds": round(time.perf_counter() - self.started, 1)})

    def _observe(self) -> None:
        """Spectra at the log-spaced steps; what is there already stays."""
        path = self.folder / "spectra" / f"step-{self.step:06d}.unit"
        if self.step in self.settings.spectra_steps() and not path.exists():
            frame, buffer = self.spectra(), io.BytesIO()
            frame.to_parquet(buffer, index=False, compression="zstd")
            files.keep(path, buffer.getvalue())

    @functools.cached_property
    def followed(self) -> Int[Tensor, "B T"]:
        """The fixed held-out contexts whose spectra are followed through training, domain after domain."""
        options = {"n": _SPECTRA_WINDOWS, "length": 512, "generator": torch.Generator().manual_seed(0)}
        return torch.cat([contexts.domain(name, self.tokenizer, **options) for name in contexts.domains()])

    def spectra(self) -> pd.DataFrame:
        """Rank, norms and mean log-decay of every head in the fixed contexts, at this step, read as in the training."""
        self.model.hf.eval()
        with states.gates_of(self.model, *self.followed.shape) as (g, _):
            sigma = states.trace(self.model, self.followed, SPECTRA_POSITIONS)
        decay = g.double().mean(2)
        self.model.hf.train()
        layers, settings = [layer.index for layer in self.model.layers], self.settings
        options = {"positions": SPECTRA_POSITIONS, "layers": layers, "model": settings.name, "seed": settings.seed}
        by_domain, tables = (x.split(_SPECTRA_WINDOWS, 1) for x in (sigma, decay)), []
        for name, own, g in zip(contexts.domains(), *by_domain, strict=True):
            table = strata.head_table(own, context=name, **options)
            tables.append(table.assign(log_decay=g[:, :, None].expand(own.shape[:-1]).numpy().ravel()))
        return pd.concat(tables, ignore_index=True).assign(step=self.step, tokens=self.settings.seen(self.step))

    def _write_model(self) -> None:
        """The weights in float16, tied ones once, with tokenizer, as a Hugging Face folder; replaces an earlier run's.

        Raises OSError with the bytes that are wanted where the disk is too full.
        """
        wanted = 2 * self.model.hf.num_parameters()
        with folders.replacing(self.folder / "final", mark="training.json", wanted=wanted) as new:
            weights = self.model.hf.state_dict()
            once = {weight.data_ptr(): name for name, weight in reversed(weights.items())}  # of tied ones the first
            state = {name: weights[name].half() for name in reversed(once.values())}
            self.model.hf.save_pretrained(new, state_dict=state)
            config = new / "config.json"
            config.write_text(config.read_text().replace('"dtype": "float32"', '"dtype": "float16"'))
            self.tokenizer.save_pretrained(new)
            files.write_json(new / "training.json", {"settings": self.settings.record(), "step": self.step})


def optimizers(hf: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest; weight decay for matrices only."""
    matrix = lambda n, p: p.ndim == 2 and min(p.shape) > 8 and not any(x in n for x in _OUTER)  # noqa: E731
    named = list(hf.named_parameters())
    inner = [p for n, p in named if matrix(n, p)]
    outer = [p for n, p in named if p.ndim == 2 and not matrix(n, p)]
    vectors = [p for _, p in named if p.ndim != 2]
    muon = torch.optim.Muon(inner, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": outer, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    return [muon, torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)]


@refusals.door()
def main() -> None:
    """Train the models named on the command line, one after the other, each into `build/train/<name>`."""
    parser = argparse.ArgumentParser(prog="python -m srdyn.training.train", description=__doc__)
    parser.add_argument("names", nargs="*", default=["hybrid", "pure", "uniform", "hybrid-seed1", "pure-seed1"])
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--float32", action="store_true", help="never multiply matrices in bfloat16")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    torch.set_flush_denormal(True)
    rounded = bfloat16.supported() and not arguments.float32
    for settings in map(recipes.named, arguments.names):
        folder = files.root() / "build" / "train" / settings.name
        run = Run(settings, folder, device=arguments.device, bfloat16=rounded)
        run.resume()
        run.train()
        files.write_json(folder / "record.json", store.run_record(bfloat16=rounded, settings=settings.record()))


if __name__ == "__main__":
    main()
