"""Tiny reference models in folders, as training saves them."""

import torch
from transformers import AutoTokenizer

from srdyn.loading import files, reference


def tiny(folder, *, seed=0, head=8, times=1.0):
    """A hybrid of three linear layers with eight heads each that knows its seed; its start, `times` as large."""
    hf = reference.initialise("hybrid", seed=seed, layers=4, hidden=32, head=head)
    hf.config.srdyn_seed, hf.config.srdyn_kind = seed, "hybrid"
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.mul_(times)
    hf.save_pretrained(folder)
    AutoTokenizer.from_pretrained(files.data_dir() / "tokenizer").save_pretrained(folder)
    return folder
