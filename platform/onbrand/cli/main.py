"""Builds the command line from its modules, runs it, and prints errors."""

from __future__ import annotations

import os
import sys

import typer

import onbrand
from onbrand.cli import (
    assets,
    audit,
    brands,
    demo,
    documents,
    generate,
    images,
    invitations,
    jobs,
    keys,
    login,
    models,
    train,
    up,
    uploads,
    users,
)
from onbrand.cli.exits import EXIT_CODES_HELP, INTERRUPTED, Failure, failure_of
from onbrand.cli.output import leave_reader, print_failure, take_any_text
from onbrand.environment import must_be_meant

_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def _version(asked: bool) -> None:
    if asked:
        print(onbrand.__version__)
        raise typer.Exit


def build() -> typer.Typer:
    """The command with all its sub-commands."""
    app = typer.Typer(
        name="onbrand",
        help="Every brand its own private image models.",
        epilog=EXIT_CODES_HELP,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    @app.callback()
    def root(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True)) -> None:
        """Every brand its own private image models."""

    for command in (up.up, demo.demo, login.signup, login.login, generate.generate):
        app.command()(command)
    groups = (train, brands, invitations, keys, assets, documents, uploads, jobs, models, images, audit, users)
    for group in groups:
        app.add_typer(group.app)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    given = sys.argv[1:] if arguments is None else arguments
    take_any_text()
    try:
        code = _run(given, "--json" in given)
        sys.stdout.flush()
    except BrokenPipeError:
        code = leave_reader()
    sys.exit(code or 0)


def _run(given: list[str], as_json: bool) -> int:
    try:
        must_be_meant(os.environ)
        return build()(args=given, prog_name="onbrand", standalone_mode=False) or 0
    except _UsageError as problem:
        return _print_usage_error(problem, as_json)
    except (KeyboardInterrupt, typer.Abort):
        print_failure(Failure(INTERRUPTED, "interrupted", "interrupted"), as_json)
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as problem:
        failure = failure_of(problem)
        if failure is None:
            raise
        print_failure(failure, as_json)
        return failure.exit_code


def _print_usage_error(problem: Exception, as_json: bool) -> int:
    message = problem.format_message()  # type: ignore[attr-defined]
    context = getattr(problem, "ctx", None)
    if type(problem).__name__ == "NoArgsIsHelpError":
        print(message, file=sys.stderr)
        return 2
    remedy = f"see '{context.command_path if context else 'onbrand'} --help'"
    print_failure(Failure(2, "usage", f"{message.rstrip('.')}; {remedy}"), as_json)
    return 2
