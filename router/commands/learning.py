"""The learner's functions on the command line: from the books to labels, a model, its report, its promotion and back.

Models that were promoted are kept in `classifier.registry_dir`, where a running gateway sees them. Exit codes are those
of every command: 1 where the labels or the model are at fault, 2 for wrong use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from router.commands.bars import counted, steps
from router.commands.options import ConfigOption, FromOption, ToOption, days_of
from router.commands.output import write_json

LabelsOption = Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Labelled rows: JSONL, may be gzipped.")]
ModelOption = Annotated[
    Path | None, typer.Option(exists=True, file_okay=False, help="Model folder; default the promoted one.")
]

ThreadsOption = Annotated[int, typer.Option(min=1, help="Threads to use; more than 1 gain only with very many rows.")]


def add_to(app: typer.Typer) -> None:
    """Make the commands part of `app`."""
    for command in (classify, train, evaluate, promote, rollback, export_labels, import_labels, calibrate_threshold):
        app.command()(command)


def classify(
    source: Annotated[Path, typer.Option("--input", exists=True, dir_okay=False, help="Rows: JSONL, may be gzipped.")],
    output: Annotated[Path, typer.Option(dir_okay=False, help="File for the predictions, a JSON line each.")],
    model: ModelOption = None,
    config: ConfigOption = None,
) -> None:
    """Score each prompt of a file: P(adequate) of every tier."""
    from classifier import cli

    root = None if model is not None else _registry_root(config)
    with _exit_codes(), counted("rows") as progress:
        told = cli.classify(source, output, model=model, registry_root=root, progress=progress)
    write_json(told)
    if told["failed"] and told["failed"] == told["rows"]:
        typer.echo(f"error: no row of {source} could be scored; each line of {output} says why", err=True)
        raise typer.Exit(1)


def train(
    labels: LabelsOption,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the model.")],
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    without_prompts: Annotated[
        bool,
        typer.Option(
            "--without-prompts", help="Keep no prompt in the folder (to give it away); promote needs --labels."
        ),
    ] = False,
    threads: ThreadsOption = 1,
) -> None:
    """Learn a model from labelled rows; it serves nothing until it is promoted."""
    from classifier import cli

    with _exit_codes(), steps() as progress:
        told = cli.train(
            labels,
            out,
            now_utc=datetime.now(UTC),
            seed=seed,
            keep_held_out=not without_prompts,
            threads=threads,
            progress=progress,
        )
    write_json(told)


def evaluate(
    labels: LabelsOption,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the report and its plots.")],
    model: ModelOption = None,
    include_seen: Annotated[
        bool, typer.Option("--include-seen", help="Rows the model was trained on too; this flatters it.")
    ] = False,
    price: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TIER=IN/OUT",
            help="USD per million tokens of a tier, such as cheap=0.1/0.5; default those in the report.",
        ),
    ] = None,
    threads: ThreadsOption = 1,
    config: ConfigOption = None,
) -> None:
    """Say how good a model is on labelled rows it has not seen: quality against cost, calibration."""
    from classifier import cli
    from router.commands.labels import given_prices

    root = None if model is not None else _registry_root(config)
    prices = given_prices(price or [])
    with _exit_codes(), steps() as progress:
        found = cli.evaluate(
            labels,
            out,
            model=model,
            registry_root=root,
            prices=prices or None,
            include_seen=include_seen,
            threads=threads,
            progress=progress,
        )
    write_json(
        {name: found[name] for name in ("model_version", "pooled", "quality_dials", "tier_quality", "notes")}
        | {"report": str(out / "report.md")}
    )


def promote(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of the model to promote.")],
    force: Annotated[bool, typer.Option("--force", help="Though it is not better; this is recorded.")] = False,
    labels: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Compare on these rows; default those held out in training."),
    ] = None,
    canary: Annotated[
        float | None,
        typer.Option(help="Only for this share of the sessions (more than 0, less than 1); `rollback` ends it."),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Make a model the current one if it is better than that on rows neither has seen."""
    from classifier import cli
    from router.commands.labels import what_it_keeps
    from router.settings import load_settings

    if canary is not None and not 0.0 < canary < 1.0:
        raise typer.BadParameter(f"{canary:g} is no share; write --canary 0.05 for one session in twenty")
    settings = load_settings(config, serving=False)
    with _exit_codes(), steps() as progress:
        told = cli.promote(
            folder,
            registry_root=settings.classifier.registry_dir,
            now_utc=datetime.now(UTC),
            labels=labels,
            force=force,
            canary_share=canary,
            progress=progress,
        )
    kept, warnings = what_it_keeps(settings, folder)
    write_json(told | {"quality_target": kept, "warnings": [*told["warnings"], *warnings]})


def rollback(config: ConfigOption = None) -> None:
    """Return to the model before the current one, or end a canary."""
    from classifier import cli

    root = _registry_root(config)
    with _exit_codes():
        told = cli.rollback(registry_root=root, now_utc=datetime.now(UTC))
    write_json(told)


def export_labels(
    out: Annotated[Path, typer.Option(dir_okay=False, help="File for the labelled rows: JSONL, packed if .gz.")],
    start: FromOption = None,
    end: ToOption = None,
    config: ConfigOption = None,
) -> None:
    """Make labelled rows of what the books hold: requests, and how good their answers were found."""
    from router.commands import labels

    labels.export(config, out, days_of(start, end))


def import_labels(
    source: Annotated[
        list[Path],
        typer.Option(
            "--input", metavar="PATH", exists=True, help="Result file, or a folder of them; may be given many times."
        ),
    ],
    out: Annotated[Path, typer.Option(dir_okay=False, help="File for the labelled rows: JSONL.")],
    form: Annotated[str, typer.Option("--format", help="routellm, routerbench or llmrouterbench.")],
    model: Annotated[
        list[str],
        typer.Option(
            "--model", metavar="TIER=MODEL", help="The model of a tier, such as local=llama-3.1-8b; one a tier."
        ),
    ],
) -> None:
    """Make labelled rows of the result files of a published routing benchmark."""
    from router.commands import labels

    labels.from_benchmark(form, source, out, model)


def calibrate_threshold(
    model: ModelOption = None,
    target: Annotated[float | None, typer.Option(help="Share of always-premium quality to keep, 0..1.")] = None,
    premium_share: Annotated[float | None, typer.Option(help="Or: share of requests that may go to premium.")] = None,
    confidence: Annotated[float, typer.Option(help="Probability with which the target is to hold, 0.5..1.")] = 0.9,
    price: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TIER=IN/OUT", help="USD per million tokens of a tier, such as cheap=0.1/0.5; default the config's."
        ),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """What a unit of missing quality must cost (nu) to keep a target at today's prices, and how sure that is."""
    from router.commands import labels

    with _exit_codes():
        labels.calibrate_threshold(
            config, model, target=target, premium_share=premium_share, confidence=confidence, price=price or []
        )


def _registry_root(config: Path | None) -> Path:
    from router.settings import load_settings

    return load_settings(config, serving=False).classifier.registry_dir


@contextmanager
def _exit_codes() -> Iterator[None]:
    from classifier.told import LearningError, UsageError

    try:
        yield
    except UsageError as error:
        raise typer.BadParameter(str(error)) from error
    except LearningError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
