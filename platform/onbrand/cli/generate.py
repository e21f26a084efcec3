"""`onbrand generate`: draw pictures and save them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onbrand.cli.exits import USAGE, Refused
from onbrand.cli.login import BrandOption, chosen_brand, connect
from onbrand.cli.output import AsJson, progress_bar, show

if TYPE_CHECKING:
    from onbrand.client import Generation


def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw; '[brand]' is the model's trigger word.")],
    model: Annotated[
        list[str] | None, typer.Option(help="An adapter: name (sd15-lora-v1) or id; repeatable, as NAME:SCALE.")
    ] = None,
    model_type: Annotated[str | None, typer.Option(help="Without --model: the base to draw with.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What not to draw.")] = None,
    num_images: Annotated[int | None, typer.Option("--num-images", "-n", help="How many pictures.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    seed: Annotated[int | None, typer.Option(help="Picture i uses seed + i.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Classifier-free guidance.")] = None,
    true_cfg_scale: Annotated[float | None, typer.Option(help="True guidance of flux.")] = None,
    lora_scale: Annotated[float | None, typer.Option(help="Strength of the adapter, if it is one.")] = None,
    sampler: Annotated[str | None, typer.Option(help="euler, dpm++2m or flow-euler; the base's own.")] = None,
    exclusive: Annotated[bool, typer.Option("--exclusive", help="Share no pass with other brands.")] = False,
    output_format: Annotated[str | None, typer.Option(help="png, jpeg or webp.")] = None,
    out: Annotated[Path, typer.Option(help="The folder for the pictures.")] = Path("."),
    brand: BrandOption = None,
    as_json: AsJson = False,
) -> None:
    """Draw pictures, wait for them and save them."""
    options: dict[str, Any] = adapters(model or []) | {
        "model_type": model_type,
        "negative_prompt": negative_prompt,
        "num_images": num_images,
        "width": width,
        "height": height,
        "seed": seed,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "true_cfg_scale": true_cfg_scale,
        "lora_scale": lora_scale,
        "sampler": sampler,
        "exclusive": exclusive or None,
        "output_format": output_format,
    }
    client = connect()
    out.mkdir(parents=True, exist_ok=True)
    with progress_bar("Drawing", as_json) as move:
        generation = client.generate_image(
            chosen_brand(client, brand),
            prompt,
            progress=lambda now: move(now.progress, f"Drawing, {now.status}"),
            **{field: wish for field, wish in options.items() if wish is not None},
        )
    _show(generation, [image.download(out) for image in generation.images], as_json)


def adapters(named: list[str]) -> dict[str, Any]:
    """The field `model` for a single name without scale, else `models` with the scale after each colon."""
    if len(named) == 1 and ":" not in named[0]:
        return {"model": named[0]}
    models = []
    for each in named:
        name, colon, scale = each.partition(":")
        try:
            models.append({"model": name, **({"scale": float(scale)} if colon else {})})
        except ValueError:
            raise Refused(f"--model {each}: after the colon goes a number", USAGE, "usage") from None
    return {"models": models} if models else {}


def _show(generation: Generation, paths: list[Path], as_json: bool) -> None:
    for cut in () if as_json else generation.cut or ():
        told = f"Note: {cut['field']} has {cut['tokens']} tokens, of which {cut['tokenizer']} reads {cut['read']}"
        typer.echo(f"{told}; what follows was not drawn.", err=True)
    document = generation.model_dump(mode="json") | {"paths": [str(path) for path in paths]}
    show(document, "\n".join(f"Saved {path}" for path in paths), as_json)
