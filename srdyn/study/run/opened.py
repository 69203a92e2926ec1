"""The models of a study: found by the names that notebooks give, opened once a process, asked on all cores."""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
import transformers
from tqdm.auto import tqdm

from srdyn import architectures, models, scores
from srdyn.architectures import cpu_speedups
from srdyn.loading import checkpoints, files
from srdyn.study.run import workers

log = logging.getLogger(__name__)


def found(name: str | Path) -> str | Path:
    """The folder of that name, seen from here or the repository, else one of the hub; FileNotFoundError for a path."""
    place = Path(name).expanduser()
    for folder in (place, files.root() / place):
        if folder.exists():
            return folder.absolute()
    if str(name).startswith((".", "/", "~")):
        raise FileNotFoundError(f"{name} is no folder, neither seen from {Path.cwd()} nor from {files.root()}")
    return name


def model(name: str | Path, **placement: object) -> models.Model:
    """The model, where `models.load` puts it, with the compiled steps of a CPU if they fit."""
    opened = models.load(name, **placement)
    cpu_speedups.use(opened.hf)
    return opened


def about(model: models.Model) -> dict[str, object]:
    """What tables call the model: `model`, `kind`, `seed`."""
    return {"model": model.name, "kind": kind(model), "seed": model.seed or 0}


def kind(model: models.Model) -> str:
    """`hybrid`, `pure`, `uniform` for a reference model, the model's own name for any other."""
    return getattr(model.hf.config, "srdyn_kind", model.name)


def made_by(name: str | Path) -> dict[str, str]:
    """What findings about a model depend on, whatever is asked: weights, held-out text, versions of the libraries."""
    return {
        "weights": identity(name),
        "contexts": files.content_hash(files.data_dir() / "contexts"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def identity(name: str | Path) -> str:
    """What tells these weights from others: the folder's content, or the commit by which the cache has the hub's.

    Raises OSError for a name of the hub that is not in the cache.
    """
    if Path(name).is_dir():
        return files.content_hash(name)
    if (place := checkpoints.folder(str(name))) is None:
        raise OSError(f"{name} is neither a folder nor, as its main revision, in the cache of the hub; load it first")
    return f"{name}@{place.name}"


def table(
    make: Callable, names: Sequence[str | Path], opening: tuple, questions: Sequence[tuple], *, desc: str
) -> pd.DataFrame:
    """One table of `make(found(name), *opening).ask(*question)` for all names and questions, as `deal` gets them."""
    work = [((place, *opening), question) for place in map(found, names) for question in questions]
    return pd.concat(tqdm(deal(make, work), desc=desc, total=len(work), leave=False), ignore_index=True)


def deal(make: Callable, work: Iterable[tuple[tuple, tuple]]) -> Iterator:
    """For every (opening, question) the answer of `make(*opening).ask(*question)`, on all cores, in this order.

    What `make`, a class or function of a module, returns is kept until a process is asked for another opening. What was
    registered in this process others do not know: it then answers alone, and says so.
    """
    if alone := [*architectures.registered(), *scores.own_rules()]:
        log.warning("one process alone knows %s, and answers all", ", ".join(alone))
        return (_ask(make, *item) for item in work)
    return workers.deal(_ask, [(make, *item) for item in work])


def _ask(make: Callable, opening: tuple, question: tuple) -> object:
    return _opened(make, opening).ask(*question)


@functools.lru_cache(maxsize=1)
def _opened(make: Callable, opening: tuple) -> object:
    return make(*opening)
