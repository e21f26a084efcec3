"""How well generated images fit a brand: similarity of their VAE latents to those of the brand's own images."""

from torch import Tensor
from torch.nn import functional


def similarity(generated_BCHW: Tensor, references_RCHW: Tensor) -> float:
    """Mean over generated images of the cosine with the nearest reference, both as flattened VAE latents; -1..1."""
    generated = functional.normalize(generated_BCHW.flatten(1).float(), dim=1)
    references = functional.normalize(references_RCHW.flatten(1).float(), dim=1)
    return float((generated @ references.T).amax(dim=1).mean())


def fit(generated_BCHW: Tensor, references_RCHW: Tensor) -> float:
    """1 - similarity: 0 is a perfect likeness, lower is better."""
    return 1 - similarity(generated_BCHW, references_RCHW)
