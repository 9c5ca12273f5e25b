"""`export-labels`, `import-labels`, `calibrate-threshold`: where labels come from, and what follows from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from router.commands.bars import counted
from router.commands.books import books_of
from router.commands.output import write_json
from router.commands.ranges import Range

if TYPE_CHECKING:
    from classifier.calibrate import TokenPrices
    from router.learning_loop.export import Exported
    from router.settings import Settings


def export(config: Path | None, out: Path, days: Range) -> None:
    """Write the labels that the books hold, and say what was found; exit code 1 where there is not one usable row."""
    from router.learning_loop.export import export as run

    with books_of(config) as (settings, engine), counted("labels") as progress:
        found = run(
            engine,
            out,
            from_utc=days.from_utc,
            to_utc=days.to_utc,
            without_tenants=settings.learning.exclude_tenants,
            progress=progress,
        )
    write_json(
        {
            **days.as_dict(),
            "out": str(out) if found.rows else None,
            **found.as_dict(),
            "advice": advice(found, settings),
        }
    )
    if not found.rows:
        typer.echo(f"error: no labelled row: {advice(found, settings)[0]}", err=True)
        raise typer.Exit(1)


def advice(found: Exported, settings: Settings) -> list[str]:
    """What keeps these labels from being more, or better, and the key that changes it; the most pressing first."""
    said = []
    if not found.answered:
        said.append("the books hold no answered request in this range")
    elif not found.labelled:
        said.append(
            "nobody has judged an answer in this range: send POST /v1/feedback, or set learning.shadow.ratio and "
            "learning.judge.model, or learning.exact_checks"
        )
    kept_out = found.left_out["prompt_not_kept"]
    if kept_out:
        said.append(
            f"{kept_out} labelled requests have no prompt in the books, and a model of text cannot be learnt from "
            "their counts alone: set server.store_prompts: true and collect labels for a while"
        )
    if found.left_out["no_choice_was_made"]:
        said.append(
            f"{found.left_out['no_choice_was_made']} labelled requests were pinned, local-only or had one tier to go "
            "to: they show nothing of the choice and are left out"
        )
    if found.capped_by_judge:
        said.append(
            f"{sum(found.capped_by_judge.values())} judgements were left out because {len(found.capped_by_judge)} "
            "callers gave more than one caller may"
        )
    if found.rows and not found.explored and not found.shadowed:
        said.append(
            "every row shows only the tier the policy chose: evaluation will refuse. Set policy.exploration_ratio or "
            "learning.shadow.ratio above 0"
        )
    if found.rows and found.uneven is not None:
        said.append(
            f"{found.uneven}: rows carry the probability of being here, and `evaluate` tells what holds for all "
            "traffic beside what holds for these rows"
        )
    off = settings.policy.exploration_ratio <= 0.0 and settings.learning.shadow_ratio <= 0.0
    if not found.rows and off and not said:
        said.append("set policy.exploration_ratio or learning.shadow.ratio above 0 to learn of the tiers not chosen")
    return said


def from_benchmark(form: str, sources: Sequence[Path], out: Path, models: Sequence[str]) -> None:
    """Write the result files of a published benchmark as labelled rows."""
    from classifier.dataset import DatasetError
    from classifier.importers import IMPORTERS, write_rows

    if form not in IMPORTERS:
        raise typer.BadParameter(f"--format {form!r}: known are {', '.join(IMPORTERS)}")
    by_tier = _pairs(models, "--model", "local=llama-3.1-8b")
    left_out: Counter[str] = Counter()
    try:
        with counted("rows") as progress:
            judged = write_rows(IMPORTERS[form](sources, by_tier, left_out), out, progress)
    except (DatasetError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    write_json(
        {
            "out": str(out),
            "rows": judged["rows"],
            "models": by_tier,
            "judged": {tier: judged.get(tier, 0) for tier in by_tier},
            "left_out": dict(sorted(left_out.items())),
        }
    )


def calibrate_threshold(
    config: Path | None,
    model: Path | None,
    *,
    target: float | None,
    premium_share: float | None,
    confidence: float,
    price: Sequence[str],
) -> None:
    """Print nu (or a threshold) from the calibration sample that travels with a model. Raises what `cli` raises."""
    from classifier import cli
    from router.settings import load_settings

    settings = load_settings(config, serving=False)
    prices = {**_listed(settings), **given_prices(price)}
    if target is None and premium_share is None:
        target = settings.policy.quality_target_ratio
    found = cli.calibrate_threshold(
        model=model,
        registry_root=None if model is not None else settings.classifier.registry_dir,
        prices=prices,
        quality_target_ratio=target,
        premium_share=premium_share,
        confidence_ratio=confidence,
    )
    shown = {t: {"input": p.input_usd_per_mtok, "output": p.output_usd_per_mtok} for t, p in sorted(prices.items())}
    write_json({**found, "usd_per_mtok": shown})


def what_it_keeps(settings: Settings, model: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """What the configured quality target costs with this model at the prices in force, and a warning where it is not
    shown to be kept: then the dearest setting is used. (`None`, none) where nothing can be said."""
    from classifier import cli
    from classifier.told import LearningError, UsageError

    try:
        dial = cli.calibrate_threshold(
            model=model,
            prices=_listed(settings),
            quality_target_ratio=settings.policy.quality_target_ratio,
            confidence_ratio=settings.classifier.confidence_ratio,
        )
    except (UsageError, LearningError):
        return None, []
    if dial["certified"]:
        return dial, []
    return dial, [
        f"with this model about {dial['cost_ratio']:.0%} of what always the best tier costs: {dial['statement']}"
    ]


def _listed(settings: Settings) -> dict[str, TokenPrices]:
    """What a token of each configured tier costs at the margin now: the price book's rows, an idle engine nothing."""
    from classifier.calibrate import TokenPrices
    from router.prices import PriceBook, PriceUnknown

    book = PriceBook.load(settings.price_overrides())
    found = {"local": TokenPrices(0.0, 0.0)}
    for tier, model in settings.tiers.api_models():
        try:
            row = book.row(model.price_key, datetime.now(UTC)).tiers[0]
        except PriceUnknown:
            continue
        known = TokenPrices(float(row.input_usd_per_mtok), float(row.output_usd_per_mtok))
        found.setdefault(tier.value, known)  # the first model of a tier stands for it
    return found


def given_prices(prices: Sequence[str]) -> dict[str, TokenPrices]:
    """Prices written as `tier=input/output`, by tier. Raises `typer.BadParameter`."""
    from classifier.calibrate import TokenPrices

    found = {}
    for tier, text in _pairs(prices, "--price", "cheap=0.1/0.5").items():
        try:
            paid_in, paid_out = (float(part) for part in text.split("/"))
        except ValueError as error:
            raise typer.BadParameter(f"--price {tier}={text}: write input/output, such as cheap=0.1/0.5") from error
        if not (0.0 <= paid_in < 1e6 and 0.0 <= paid_out < 1e6):
            raise typer.BadParameter(f"--price {tier}={text}: a price lies between 0 and 1e6 USD per million tokens")
        found[tier] = TokenPrices(paid_in, paid_out)
    return found


def _pairs(texts: Sequence[str], option: str, example: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        tier, equals, value = text.partition("=")
        if not equals or not tier or not value:
            raise typer.BadParameter(f"{option} {text!r}: write it as {option} {example}")
        if tier in found:
            raise typer.BadParameter(f"{option} names {tier!r} twice")
        found[tier] = value
    return found
