"""Interpret the names, shapes and settings in a LoRA file of any trainer. Needs neither torch nor numpy.

y += scale * up (down x) for each layer. `sandbox.weights` checks the values on upload, and `families.lora_conversion`
checks them in the importing job.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, NoReturn

from onbrand.errors import AdapterRefused
from onbrand.lora_patterns import LayerPatterns
from onbrand.safetensors_header import LORA_METADATA, SafetensorsHeader, TensorFacts

TextEncoderOption = Literal["refuse", "drop"]
"""Handling of a file's text-encoder layers: refuse the file, or import it without them."""
NUMBER_MAX = 1e9
"""The largest rank or alpha that a file's settings may name."""
_SUFFIXES = (
    (re.compile(r"\.lora_down(\.\w+)?\.weight"), ".lora_up{}.weight"),
    (re.compile(r"\.lora_A(\.\w+)?\.weight"), ".lora_B{}.weight"),
    (re.compile(r"\.lora\.down()\.weight"), ".lora.up{}.weight"),
    (re.compile(r"_lora\.down()\.weight"), "_lora.up{}.weight"),
    (re.compile(r"\.lora_linear_layer\.down()\.weight"), ".lora_linear_layer.up{}.weight"),
)
"""Suffix of a down matrix's name, with or without PEFT's adapter name, and the suffix of its up matrix."""
_ALPHA = ".alpha"
_WRAPPERS = ("base_model.model.", "model.diffusion_model.", "diffusion_model.")
"""Prefixes of layer names in files of PEFT and ComfyUI."""
_TEXT_ENCODERS = (
    *("text_encoder", "text_model.", "te_", "te1_", "te2_", "te3_", "lora_te", "lora_clip", "clip_l.", "clip_g."),
    *("t5xxl.", "cond_stage_model", "conditioner."),
)
_OTHER_PRODUCTS = ("lokr_", "hada_", "lora_mid", ".oft_", "oft_diag", ".glora", "dora_scale", "lora_magnitude")
_ZEROS = (".diff", ".diff_b", ".bias", ".lora_bias")
"""Suffixes of tensors that are added directly and not as a product; harmless if zero."""
_COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2")
_PATTERN = re.compile(r"\^?[A-Za-z0-9_.]{1,200}")
_REFUSED_SETTINGS = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "use_qalora",
    "alora_invocation_tokens",
)


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """An importer's options for a file, besides its family.

    Args:
        text_encoder: handling of text-encoder layers.
        lora_alpha: alpha of all layers, for files whose format stores it elsewhere (PEFT's `adapter_config.json`).
    """

    text_encoder: TextEncoderOption = "refuse"
    lora_alpha: float | None = None


@dataclass(frozen=True, slots=True)
class Dropped:
    """Text-encoder layers that an import leaves out.

    Args:
        norm: Frobenius norm of all their weight changes together.
        norm_of_all: the same for the whole file; squares of norms add up.
    """

    layers: int
    norm: float
    norm_of_all: float

    def as_json(self) -> dict[str, float]:
        """As JSON for the importer; `norm_share` is norm / norm_of_all."""
        share = self.norm / self.norm_of_all if self.norm_of_all else 0.0
        norm, norm_of_all = (float(f"{value:.4g}") for value in (self.norm, self.norm_of_all))
        return {"layers": self.layers, "norm": norm, "norm_of_all": norm_of_all, "norm_share": round(share, 4)}


@dataclass(frozen=True, slots=True)
class PairNames:
    """The tensors of one LoRA layer, by their names in the file.

    Args:
        layer: the common name of the tensors, without their suffixes.
        name: `layer` without the prefixes of PEFT and ComfyUI.
    """

    layer: str
    name: str
    down: str
    up: str
    alpha: str | None


@dataclass(frozen=True, slots=True)
class LoraNames:
    """All tensors of a file.

    Args:
        pairs: of the denoiser.
        text_pairs: of text encoders; not imported.
        zeros: tensors that add nothing if they are zero; others are not served.
    """

    pairs: list[PairNames]
    text_pairs: list[PairNames]
    zeros: list[str]


@dataclass(frozen=True)
class LoraSettings:
    """Scaling fields of PEFT's configuration of one component. Others are not kept: they could name code to import."""

    r: int
    lora_alpha: float
    rank_pattern: dict[str, float]
    alpha_pattern: dict[str, float]
    use_rslora: bool

    @cached_property
    def _alphas(self) -> LayerPatterns:
        return LayerPatterns(self.alpha_pattern)

    def scale(self, path: str, rank: int) -> float:
        """Scale of the layer at `path` in its component: alpha / rank, with rsLoRA alpha / sqrt(rank), as in PEFT."""
        alpha = self._alphas.of(path, self.lora_alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def must_be_plain_lora(header: SafetensorsHeader, text_encoder: TextEncoderOption = "refuse") -> LoraNames:
    """Find the layers of a LoRA file of any trainer by names and shapes alone.

    Raises:
        AdapterRefused: DoRA, text-encoder layers unless they may be dropped, LyCORIS' other products, a half pair, or
            two adapters in one file. Ignoring these silently would change the images.
    """
    names = header.tensors
    for name in names:
        _must_be_servable(name)
    zeros = [name for name in names if name.endswith(_ZEROS)]
    found = [pair for name in names if (pair := _pair(name, names)) is not None]
    text_pairs = [pair for pair in found if _is_of_text(pair.layer)]
    pairs = [pair for pair in found if not _is_of_text(pair.layer)]
    if text_encoder == "refuse" and (text := next(filter(_is_of_text, names), None)) is not None:
        _refuse_text(text, len(text_pairs), len(found))
    expected = {name for pair in found for name in (pair.down, pair.up, pair.alpha) if name is not None}.union(zeros)
    if not found or (strange := sorted(set(names) - expected)):
        example = f" (for example {strange[0]})" if found else ""
        _refuse(f"it is no plain LoRA with a down and an up matrix for every layer{example}")
    for pair in found:
        _must_be_pair(pair, names)
    _must_be_named_once(found)
    if not pairs:
        _refuse(f"all its {len(text_pairs)} layers are of a text encoder, which is not served")
    return LoraNames(pairs, text_pairs, zeros)


def must_be_settings(metadata: Mapping[str, str]) -> dict[str, LoraSettings]:
    """PEFT's configuration in a file's header, by component; under "" if no component is named.

    Raises AdapterRefused if it is not a JSON object, holds numbers that are not finite, or does more than scaling.
    """
    try:
        entries = json.loads(
            metadata.get(LORA_METADATA, "{}"),
            parse_constant=_no_constant,
            parse_float=partial(_bounded, kind=float),
            parse_int=_bounded,
        ).items()
    except (ValueError, AttributeError, RecursionError):
        raise AdapterRefused(f"the header's {LORA_METADATA} is not a JSON object") from None
    by_component: dict[str, dict[str, Any]] = {}
    for key, value in entries:
        component, _, rest = key.partition(".")
        is_known = component in _COMPONENTS
        by_component.setdefault(component if is_known else "", {})[rest if is_known else key] = value
    bare = by_component.get("", {})
    if not {"r", "lora_alpha"} & set(bare):
        by_component.pop("", None)
    return {component: _settings(config) for component, config in by_component.items()}


def settings_of(settings: Mapping[str, LoraSettings], pair: PairNames) -> tuple[LoraSettings | None, str]:
    """The settings of this layer's component, and the layer's path in it."""
    component, _, path = pair.name.partition(".")
    if component in _COMPONENTS:
        return settings.get(component, settings.get("")), path
    return settings.get("", next(iter(settings.values())) if len(settings) == 1 else None), pair.name


def scale_of(
    pair: PairNames, rank: int, alpha: float | None, settings: Mapping[str, LoraSettings], options: ImportOptions
) -> float:
    """The layer's scale by its own alpha tensor, else PEFT's configuration, else the importer's alpha, else 1.

    Args:
        alpha: the value of the pair's own tensor.

    Raises AdapterRefused if PEFT keeps alpha in a separate file and the importer gives none, or if both give it.
    """
    known, path = settings_of(settings, pair)
    if (alpha is not None or known is not None) and options.lora_alpha is not None:
        _refuse(f"it says its own alpha (of {pair.layer}); leave lora_alpha out")
    if alpha is not None:
        return alpha / rank
    if known is not None:
        return known.scale(path, rank)
    if options.lora_alpha is not None:
        return options.lora_alpha / rank
    if pair.layer.startswith("base_model.model."):
        _refuse(
            f"PEFT keeps its alpha (of {pair.layer}) in another file, adapter_config.json; "
            "say it as lora_alpha when you import"
        )
    return 1.0


def _refuse(why: str) -> NoReturn:
    raise AdapterRefused(f"the safetensors file is refused: {why}")


def _must_be_servable(name: str) -> None:
    if "dora_scale" in name or "lora_magnitude" in name:
        _refuse(f"it is a DoRA ({name}), which is not served; train a plain LoRA")
    if any(word in name for word in _OTHER_PRODUCTS):
        _refuse(f"it is no plain LoRA ({name}): LoKr, LoHa, OFT and Tucker products are not served")


def must_be_zeros(name: str) -> NoReturn:
    """Raise AdapterRefused for a tensor of `LoraNames.zeros` that is not zero."""
    if name.endswith((".diff", ".diff_b")):
        _refuse(f"it is no plain LoRA ({name} is not zero): full differences are not served")
    _refuse(f"it has biases ({name} is not zero), which are not served")


def _pair(name: str, names: Mapping[str, TensorFacts]) -> PairNames | None:
    """The pair with this tensor as its down matrix, or None."""
    for ending, up in _SUFFIXES:
        found = ending.search(name)
        if found is None or found.end() != len(name):
            continue
        layer, other = name[: found.start()], name[: found.start()] + up.format(found[1] or "")
        if other in names:
            alpha = layer + _ALPHA if layer + _ALPHA in names else None
            return PairNames(layer, _without_wrappers(layer), name, other, alpha)
    return None


def _without_wrappers(layer: str) -> str:
    for wrapper in _WRAPPERS:
        layer = layer.removeprefix(wrapper)
    return layer


def _must_be_pair(pair: PairNames, names: Mapping[str, TensorFacts]) -> None:
    down, up = names[pair.down].shape, names[pair.up].shape
    if len(down) not in (2, 4) or len(up) not in (2, 4) or up[1] != down[0] or up[2:] not in ((), (1, 1)):
        _refuse(f"the shapes {down} and {up} of {pair.layer} are not those of a LoRA layer")
    if pair.alpha is not None and math.prod(names[pair.alpha].shape) != 1:
        _refuse(f"the alpha of {pair.layer} is not a number")
    for name in (pair.down, pair.up):
        if names[name].dtype not in ("F32", "F16", "BF16"):
            _refuse(f"the dtype of {name} is none of F32, F16, BF16")


def _is_of_text(name: str) -> bool:
    return _without_wrappers(name).startswith(_TEXT_ENCODERS)


def _refuse_text(name: str, num_text: int, num_all: int) -> NoReturn:
    _refuse(
        f"it also changes a text encoder, which is not served ({num_text} of its {num_all} layers, for example "
        f"{name}); say text_encoder=drop to import it without them, or export the denoiser only"
    )


def _must_be_named_once(pairs: Iterable[PairNames]) -> None:
    seen: set[str] = set()
    for pair in pairs:
        if pair.layer in seen:
            _refuse(f"it holds two adapters for {pair.layer}; save one alone")
        seen.add(pair.layer)


# settings


def _settings(config: Mapping[str, Any]) -> LoraSettings:
    if refused := next((name for name in _REFUSED_SETTINGS if config.get(name)), None):
        raise AdapterRefused(f"the file was made with {refused}, which is not served; train a plain LoRA")
    patterns = {name: _must_be_pattern(config.get(name) or {}) for name in ("rank_pattern", "alpha_pattern")}
    numbers = [config.get("r"), config.get("lora_alpha"), *(n for each in patterns.values() for n in each.values())]
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        raise AdapterRefused(f"the header's {LORA_METADATA} has no r and lora_alpha that are numbers")
    if not config["r"] >= 1:
        raise AdapterRefused(f"the header's {LORA_METADATA} says a rank below 1")
    return LoraSettings(int(config["r"]), config["lora_alpha"], **patterns, use_rslora=config.get("use_rslora") is True)


def _must_be_pattern(pattern: object) -> dict[str, Any]:
    if not isinstance(pattern, dict) or not all(_PATTERN.fullmatch(key) for key in pattern):
        raise AdapterRefused(f"the patterns in the header's {LORA_METADATA} are not names of layers")
    return pattern


def _no_constant(name: str) -> NoReturn:
    raise AdapterRefused(f"the header's {LORA_METADATA} holds {name}, which is no number that can scale a layer")


def _bounded(text: str, kind: Any = int) -> Any:
    number = kind(text)
    if not abs(number) <= NUMBER_MAX:
        _no_constant(text[:40])
    return number
