"""A family without weights, built from a base's configuration: all shapes and no memory, to measure the memory of a
step before anything is loaded."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from onbrand.families.bases import recommended
from onbrand.families.family import Conditioning, Family
from onbrand.families.loading import family_class
from onbrand.families.spec import SPECS


class MetaFamily:
    """A base of which only the configuration was read.

    Its parts are on torch's meta device, where layers can be replaced and added, until `settle`.

    Args:
        dtype: the dtype in which it would be loaded.
    """

    def __init__(self, name: str, folder: Path, dtype: torch.dtype) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        index = json.loads((folder / "model_index.json").read_text())
        parts = {key: value[1] for key, value in index.items() if isinstance(value, list) and all(value)}
        component = SPECS[name].component  # type: ignore[index]
        with torch.device("meta"), _floats_of(dtype):
            models = {each: _diffusers(parts[each], folder / each) for each in (component, "vae")}
            texts = [_transformer(parts[each], folder / each) for each in parts if each.startswith("text_encoder")]
        pipeline: Any = SimpleNamespace(
            **models,
            scheduler=_diffusers(parts["scheduler"], folder / "scheduler"),
            components=models,
            vae_scale_factor=2 ** (len(models["vae"].config.block_out_channels) - 1),
        )
        self.family: Family = family_class(name)(pipeline, recommended(name, folder), "hollow")
        self.text_bytes = sum(num_bytes(text) for text in texts)
        self._max_tokens = max(_text_length(folder / each) for each in parts if each.startswith("text_encoder"))

    def settle(self) -> None:
        """From now on it computes as on a CPU, without memory; no layers can be added any more."""
        with self._mode:
            for module in (*self.family.denoiser.modules(), *self.family.vae.modules()):
                for name, weight in module._parameters.items():
                    if weight is not None:
                        fake = torch.empty(weight.shape, dtype=weight.dtype, device="cpu")
                        module._parameters[name] = nn.Parameter(fake, weight.requires_grad)
                for name, value in module._buffers.items():
                    if value is not None:
                        module._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device="cpu")

    def conditioning(self, num_rows: int) -> Conditioning:
        """Zeros in the shapes of the base's text conditioning, `num_rows` rows."""
        length, dtype = self.family.recommended.max_sequence_length or self._max_tokens, self.family.dtype
        shapes = self.family.text_shapes(length)
        with self._mode:
            return Conditioning({name: torch.zeros(num_rows, *shape, dtype=dtype) for name, shape in shapes.items()})

    def peak_bytes(self, work: Callable[[], Any]) -> int:
        """The peak memory of `work` in bytes, not counting the settled base."""
        height = PeakMemory([*self.family.denoiser.parameters(), *self.family.vae.parameters()])
        with self._mode, height:
            work()
        return height.peak


class PeakMemory(TorchDispatchMode):
    """Sums the bytes of live storages.

    Args:
        known: tensors whose storage does not count.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = {id(storage): storage for storage in (tensor.untyped_storage() for tensor in known)}
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, out)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._seen or key in self._alive:
            return
        self._alive.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def _diffusers(kind: str, folder: Path) -> Any:
    import diffusers

    made = getattr(diffusers, kind)
    return made.from_config(made.load_config(folder))


def _transformer(kind: str, folder: Path) -> nn.Module:
    import transformers

    made: nn.Module = getattr(transformers, kind)(transformers.AutoConfig.from_pretrained(folder))
    return made


def _text_length(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text()).get("max_position_embeddings") or 0)


@contextmanager
def _floats_of(dtype: torch.dtype) -> Iterator[None]:
    """Within the context, new weights have this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def num_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    held: list[Tensor] = [*module.parameters(), *module.buffers()]
    return sum(weight.numel() * weight.element_size() for weight in held)
