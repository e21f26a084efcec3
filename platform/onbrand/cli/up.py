"""`onbrand up`: runs the whole platform on this machine in the foreground until Ctrl-C."""

from __future__ import annotations

import contextlib
import difflib
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onbrand.cli.output import AsJson, show

if TYPE_CHECKING:
    from onbrand.config import Settings
    from onbrand.errors import ConfigurationError
    from onbrand.local.platform import Platform

_POLL_SECONDS = 0.5


def up(
    host: Annotated[str | None, typer.Option(help="Address to listen on (ONBRAND_HOST).")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0 takes a free one (ONBRAND_PORT).")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Everything local lies here (ONBRAND_DATA_DIR).")] = None,
    family: Annotated[list[str] | None, typer.Option(help="Serve only this family; repeatable.")] = None,
    dev: Annotated[
        bool,
        typer.Option("--dev", help="Allow a Ray that lets everybody in (ONBRAND_DEV). Not for real data."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run the platform here: database, object store, Ray, Serve. Ctrl-C stops all of it, and nothing else."""
    settings = settings_from(
        {"host": host, "port": port, "data_dir": data_dir, "families": family or None, "dev": dev or None}
    )
    listen_for_end()
    from onbrand.local.platform import Platform

    with Platform(settings, tell=_teller(as_json)) as platform:
        _announce(platform, as_json)
        with contextlib.suppress(Ended):
            _wait_for_end(platform)


def _wait_for_end(platform: Platform) -> None:
    while platform.is_alive:
        platform.restart_if_dead()
        time.sleep(_POLL_SECONDS)
    from onbrand.errors import ConfigurationError

    log = platform.settings.folder / "logs" / "ray.log"
    raise ConfigurationError(f"Ray has ended; {log} says why; start the platform again to go on")


def settings_from(options: dict[str, Any]) -> Settings:
    """The environment's settings, overridden by `options`. Raises ConfigurationError naming the setting."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from onbrand.config import Settings
    from onbrand.errors import ConfigurationError

    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as problem:
        raise _setting_refused(problem.errors(include_input=False, include_context=False)[0]) from None
    except SettingsError as problem:
        raise ConfigurationError(f"{problem}; give it as JSON in the environment") from None


def _setting_refused(first: Any) -> ConfigurationError:
    from onbrand.config import Limits
    from onbrand.errors import ConfigurationError

    path = [str(part) for part in first["loc"] if part != "[key]"]
    variable = f"ONBRAND_{'__'.join(path).upper()}"
    if first["type"] == "extra_forbidden" and path[0] == "limits":
        nearest = difflib.get_close_matches(path[-1], Limits.model_fields, n=1)
        meant = f" (do you mean ONBRAND_LIMITS__{nearest[0].upper()}?)" if nearest else ""
        return ConfigurationError(f"{variable} is no setting of Onbrand{meant}; unset it", param=path[0])
    return ConfigurationError(f"setting {path[0]}: {first['msg']}; fix {variable}", param=path[0])


class Ended(KeyboardInterrupt):
    """Raised by the first SIGINT or SIGTERM."""


def listen_for_end() -> None:
    """Make the first SIGINT or SIGTERM raise Ended; later ones are ignored, so that clean-up can finish."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) == 1:
            raise Ended

    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)


def _teller(as_json: bool) -> Any:
    from rich.console import Console

    console = Console(stderr=True)
    return (lambda text: None) if as_json else (lambda text: console.print(f"[dim]{text} ...[/dim]"))


def _announce(platform: Platform, as_json: bool) -> None:
    settings = platform.settings
    document = {"url": platform.url, "data_dir": str(settings.folder), "families": list(settings.families)}
    if as_json:
        show(document, "", as_json)
    else:
        _print_panel(platform.url, settings)
    sys.stdout.flush()


def _print_panel(url: str, settings: Settings) -> None:
    from rich.console import Console
    from rich.panel import Panel

    at = "" if url == "http://127.0.0.1:8000" else f" --url {url}"
    text = (
        f"[bold]{url}[/bold]   API: {url}/openapi.json\n\n"
        f"First time:  onbrand signup you@example.com{at}\n"
        f"Later:       onbrand login you@example.com{at}\n"
        "Then:        onbrand brand create acme; onbrand asset upload PICTURES\n"
        "             onbrand train; onbrand generate PROMPT --model sd15-lora-v1\n\n"
        f"Data: {settings.folder}   Families: {', '.join(settings.families)}   Ctrl-C ends it."
    )
    Console().print(Panel(text, title="Onbrand is up", border_style="green"))
