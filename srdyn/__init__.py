"""Rank dynamics of the recurrent states of linear-attention language models.

The whole use, from the root of the repository:

    import torch
    from srdyn import ablation, contexts, models, pruning, scores, spectra, states

    model = models.load("data/models/hybrid")  # a folder, or a name on the Hugging Face hub
    tokens = contexts.domain("prose", model.tokenizer, n=2, length=256, generator=torch.Generator().manual_seed(0))
    sigma = states.trace(model, tokens, positions=[1, 16, 64, 256])  # singular values [L, B, C, H, min(K, V)]
    rank = spectra.effective_rank(sigma)  # how many exceed 1e-4 of the largest (Eq. 6): [L, B, C, H]
    fullest = ~pruning.select(rank[:, :, -1].mean(1), fraction=0.25)  # a quarter of the heads [L, H]
    with ablation.ablate_heads(model, fullest):
        logits = model.logits(tokens)  # what the model expects without them
    read = scores.calibration(model, domains=("code", "prose"), n=2, length=256)
    profile = scores.profile(model, read)  # means of every head over text for calibration
    score = pruning.saturation_score(profile.rank, profile.norm, profile.D, alpha=0.5)  # Eq. 14
    smaller = pruning.prune_heads(model, keep=pruning.select(score, fraction=0.389))
    pruning.save(smaller, "build/smaller")  # models.load reads it back
    print(smaller.generate("The key of", max_new_tokens=12))
"""

import time
import warnings

# flash-linear-attention says so when it is imported without a GPU, where none of its kernels is used.
warnings.filterwarnings("ignore", "Triton is not supported on current platform", UserWarning)

__version__ = "0.1.0"
BEGAN = time.time()  # of what is edited later, this process may have imported what stood there before
