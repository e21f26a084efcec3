"""Data checks: find faults of training pictures and captions, with reasons and remedies.

Errors stop a job before it costs anything; warnings are reported and kept. Pictures are measured once, when they are
uploaded (`sandbox.image_features`); this module judges the measurements. Members run it (`training-jobs:check`), and so
does every job.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from onbrand.brand import with_trigger_word
from onbrand.errors import DataRefused
from onbrand.families.aspect_buckets import bucket_step, smallest_side
from onbrand.families.spec import FamilySpec, Recommended
from onbrand.families.tokens import TextLengths
from onbrand.sandbox.results import ImageFeatures

Level = Literal["error", "warning"]
ENOUGH_PICTURES = 10
"""With fewer different pictures, an adapter is likely to memorise the pictures."""

TWIN_BITS = 16
"""Maximum difference between 256-bit difference hashes of near duplicates: a crop of 1 % of each side changes up to 12
bits, scaling and JPEG up to 6, another picture about half of them."""
TWIN_COLOURS = 4.0
"""Maximum mean difference of 8 x 8 colour means, of 255, between near duplicates with similar hashes."""
BLUR_RATIO = 0.1
"""At twice the size, the Laplacian variance of a sharp edge halves; blurred by 1.3 pixels or more, under a tenth."""
BLUR_FLOOR = 1e-4
"""Below this variance there is no detail to judge: rounding to 8 bits alone gives about 1e-5."""
EMPTY_CONTRAST = 0.01
_SHOWN_ERRORS = 3


class Finding(BaseModel):
    """One finding about the data.

    Args:
        file: the stored picture's own name (``logo-001.png``); None: about all pictures.
        name: the file's name when it was uploaded, if known.
        message: the problem, and its effect.
        remedy: the suggested action.
    """

    model_config = ConfigDict(frozen=True)

    level: Level
    code: str
    asset_id: str | None = None
    file: str | None = None
    name: str | None = None
    message: str
    remedy: str


class CheckedData(BaseModel):
    """The result of a check: `ok` unless a finding is an error."""

    model_config = ConfigDict(frozen=True)

    ok: bool
    num_images: int
    num_errors: int
    num_warnings: int
    resolution: int
    trigger_word: str
    findings: list[Finding]


@dataclass(frozen=True, slots=True)
class DataTarget:
    """The intended training that the pictures are checked for.

    Args:
        resolution: pixels of a side in training.
        trigger_word: replaces ``[brand]``.
        smallest_side: pixels; a picture with a shorter side cannot be trained on.
        text_lengths: caption lengths that the base reads; None if the base is not at hand.
    """

    resolution: int
    trigger_word: str
    smallest_side: int
    text_lengths: TextLengths | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class DataSample:
    """One picture of the data: its caption, and its measurements from the upload.

    Args:
        features: `ImageFeatures` by name, as the row holds them; empty if the picture was never measured.
    """

    asset_id: str
    file: str
    caption: str = field(repr=False)
    features: Mapping[str, Any] = field(repr=False)
    name: str | None = None


def target_of(spec: FamilySpec, config: Mapping[str, Any], recommended: Recommended, brand_id: str) -> DataTarget:
    """The aim of a job with this (checked) configuration, on a base of this family."""
    resolution = config.get("resolution") or recommended.training.resolution or recommended.resolution
    least = smallest_side(resolution, bucket_step(spec, recommended.resolution))
    return DataTarget(resolution, config.get("trigger_word") or brand_id, least)


def examine(samples: Sequence[DataSample], target: DataTarget) -> list[Finding]:
    """All findings: errors first, then in the order of the pictures."""
    measured = [(sample, ImageFeatures(**sample.features)) for sample in samples if sample.features]
    twins = list(_twins(measured))
    findings = [finding for sample in samples if not sample.features for finding in _of_unmeasured(sample)]
    findings += [finding for sample, seen in measured for finding in _of_picture(sample, seen, target)]
    findings += [finding for sample in samples for finding in _of_caption(sample, target)]
    findings += [finding for _, finding in twins]
    findings += _of_all(len(samples) - len({asset_id for asset_id, _ in twins}))
    place = {sample.asset_id: number for number, sample in enumerate(samples)}
    return sorted(findings, key=lambda each: (each.level != "error", place.get(each.asset_id or "", len(place))))


def seen_in_rows(sample: DataSample, width: int, height: int, target: DataTarget) -> list[Finding]:
    """Findings from a picture's row alone: its size in pixels, and its caption."""
    return [*_of_size(sample, width, height, target), *_of_caption(sample, target)]


def checked_data(findings: Sequence[Finding], num_images: int, target: DataTarget) -> CheckedData:
    """The result of a check."""
    num_errors = sum(finding.level == "error" for finding in findings)
    return CheckedData(
        ok=num_errors == 0,
        num_images=num_images,
        num_errors=num_errors,
        num_warnings=len(findings) - num_errors,
        resolution=target.resolution,
        trigger_word=target.trigger_word,
        findings=list(findings),
    )


def must_be_fit(findings: Sequence[Finding]) -> None:
    """Raise DataRefused if a finding is an error; the message holds the first of them and counts the others."""
    errors = [finding for finding in findings if finding.level == "error"]
    if not errors:
        return
    told = "; ".join(f"{finding.message}: {finding.remedy}" for finding in errors[:_SHOWN_ERRORS])
    more = f"; and {len(errors) - _SHOWN_ERRORS} more" if len(errors) > _SHOWN_ERRORS else ""
    raise DataRefused(
        f"{told}{more}",
        param="training_asset_ids",
        findings=[finding.model_dump(mode="json") for finding in findings],
    )


def _finding(level: Level, code: str, sample: DataSample, why: str, remedy: str) -> Finding:
    return Finding(
        level=level,
        code=code,
        asset_id=sample.asset_id,
        file=sample.file,
        name=sample.name,
        message=f"{sample.file} {why}",
        remedy=remedy,
    )


def _of_unmeasured(sample: DataSample) -> Iterator[Finding]:
    why = "cannot be read: it was stored without its measurements"
    yield _finding("error", "unreadable", sample, why, "delete it and upload it again")


def _of_picture(sample: DataSample, seen: ImageFeatures, target: DataTarget) -> Iterator[Finding]:
    yield from _of_size(sample, seen.width, seen.height, target)
    yield from _of_alpha(sample, seen)
    if seen.visible > 0 and seen.contrast < EMPTY_CONTRAST:
        why = "is one plain colour: there is nothing in it to learn"
        yield _finding("warning", "empty", sample, why, "leave it out")
    elif (side := blurred_to(seen, target.resolution)) is not None:
        why = f"is blurred: its finest detail is that of a picture of {side} pixels, and it is trained at "
        why += f"{min(target.resolution, seen.width, seen.height)}"
        yield _finding("warning", "blurred", sample, why, "use a sharper original, or leave it out")


def _of_size(sample: DataSample, width: int, height: int, target: DataTarget) -> Iterator[Finding]:
    """Pictures are never scaled up: a smaller one is trained at a smaller size, down to the smallest bucket."""
    if min(width, height) >= target.resolution:
        return
    too_small = min(width, height) < target.smallest_side
    why = f"is {width} x {height} pixels; this job trains at {target.resolution}"
    remedy = f"use an original whose shorter side has {target.resolution} pixels, or train at a lower resolution"
    if too_small:
        yield _finding("error", "too_small", sample, why, remedy)
    else:
        yield _finding("warning", "small", sample, why, remedy)


def _of_alpha(sample: DataSample, seen: ImageFeatures) -> Iterator[Finding]:
    if seen.visible == 0:
        why = "is wholly transparent: nothing of it can be seen"
        yield _finding("error", "invisible", sample, why, "export it again with its layers, or leave it out")
    elif seen.opaque < 1:
        why = f"is transparent in {max(1, round(100 * (1 - seen.opaque)))} % of its area; it is trained on white there"
        remedy = "put it on the background that pictures of the brand should have, if that is not white"
        yield _finding("warning", "transparent", sample, why, remedy)


def blurred_to(seen: ImageFeatures, resolution: int) -> int | None:
    """The shorter side, in pixels, that still holds all of a blurred picture's detail; None if it is sharp.

    Compares the variance of the Laplacian (Pech-Pacheco et al. 2000) between neighbouring levels of a pyramid, so that
    neither contrast nor the number of edges matters. With each doubling of size it halves for sharp edges, stays for
    natural texture, and falls to a tenth or less if the finer level adds nothing.
    """
    levels = list(zip(seen.sides, seen.sharpness, strict=True))
    for (side, coarse), (finer, fine) in pairwise(levels):
        if finer <= resolution and coarse >= BLUR_FLOOR and fine < BLUR_RATIO * coarse:
            return side
    return None


def _of_caption(sample: DataSample, target: DataTarget) -> Iterator[Finding]:
    """Owners write the trigger word in prompts: an adapter learns nothing about it if the caption lacks it."""
    caption = with_trigger_word(sample.caption, target.trigger_word).strip()
    if not caption:
        why = "has no caption"
        yield _finding("error", "no_caption", sample, why, "describe it, with '[brand]' for the brand")
    elif not holds_word(caption, target.trigger_word):
        why = f"has a caption without the trigger word '{target.trigger_word}', so it would teach nothing about it"
        yield _finding("error", "no_trigger", sample, why, "write '[brand]' where its caption names the brand")
    cuts = target.text_lengths.cuts(caption) if target.text_lengths is not None else []
    if cuts:
        worst = min(cuts, key=lambda cut: cut.read / cut.tokens)
        why = (
            f"has a caption of {worst.tokens} tokens, of which the base reads {worst.read}: what follows is not learnt"
        )
        yield _finding("warning", "caption_cut", sample, why, "shorten it, what matters most first")


def holds_word(caption: str, word: str) -> bool:
    """Whether the caption holds the whole word, in any case: CLIP's tokenizer ignores case."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", caption, re.IGNORECASE) is not None


def _twins(measured: Sequence[tuple[DataSample, ImageFeatures]]) -> Iterator[tuple[str, Finding]]:
    """(asset id, finding) for each picture that duplicates an earlier one."""
    earlier: list[tuple[DataSample, ImageFeatures, int, bytes]] = []
    for sample, seen in measured:
        bits, colours = int(seen.dhash, 16), bytes.fromhex(seen.colours)
        for first, other, other_bits, other_colours in earlier:
            finding = None
            if seen.digest == other.digest:
                why = f"is {first.file} again, pixel for pixel: it would count twice"
                finding = _finding("error", "duplicate", sample, why, "leave one of the two out")
            elif (bits ^ other_bits).bit_count() <= TWIN_BITS and _distance(colours, other_colours) <= TWIN_COLOURS:
                why = f"is nearly the same picture as {first.file}: what both show counts twice"
                finding = _finding("warning", "near_duplicate", sample, why, "keep the better of the two")
            if finding is not None:
                yield sample.asset_id, finding
                break
        earlier.append((sample, seen, bits, colours))


def _distance(one: bytes, other: bytes) -> float:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


def _of_all(num_different: int) -> Iterator[Finding]:
    if num_different < ENOUGH_PICTURES:
        yield Finding(
            level="warning",
            code="few_images",
            message=f"there are {num_different} different pictures: the adapter may learn these pictures by heart",
            remedy=f"add others, to {ENOUGH_PICTURES} or more, or train for fewer steps",
        )
