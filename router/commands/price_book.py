"""`prices show` and `prices check`, and the look-up that `estimate` shares with them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from router.commands.output import Format, write_json, write_rows
from router.core.dated_prices import EPOCH
from router.core.snapshot import PriceRow
from router.errors import BadRequest
from router.prices import PriceBook, PriceUnknown
from router.settings import Settings, load_settings


def row_for(settings: Settings, model: str, at_utc: datetime, processing: str = "standard") -> PriceRow:
    """The row in force for `model`, which may be a name of the config. Raises `RouterError` where there is none."""
    keys = {configured.name: configured.price_key for _, configured in settings.tiers.api_models()}
    try:
        return book_of(settings).row(keys.get(model, model), at_utc, processing=processing)
    except PriceUnknown as unknown:
        raise BadRequest(str(unknown), code="price_unknown", param="model") from unknown


def book_of(settings: Settings) -> PriceBook:
    """The price book with the config's own prices on top."""
    return PriceBook.load(settings.price_overrides() or None)


def since(row: PriceRow) -> str | None:
    """From when the row holds, in ISO form; `None` where its source does not say."""
    return None if row.effective_from_utc == EPOCH else row.effective_from_utc.isoformat(timespec="seconds")


def show(config: Path | None, form: Format, *, model: str, at_utc: datetime) -> None:
    """Print the row in force, one line a tier of input tokens."""
    row = row_for(load_settings(config, serving=False), model, at_utc)
    head: dict[str, Any] = {
        "model": row.model,
        "provider": row.provider,
        "source": row.source,
        "version": row.version,
        "effective_from_utc": since(row),
        "valid_until_utc": row.valid_until_utc.isoformat(timespec="seconds") if row.valid_until_utc else None,
        "usd_per_request": row.request_usd,
        "flags": [flag.value for flag in row.flags],
    }
    tiers = [
        {
            "from_input_tokens": tier.from_input_tokens,
            "input_usd_per_mtok": tier.input_usd_per_mtok,
            "cached_input_usd_per_mtok": tier.cached_input_usd_per_mtok,
            "cache_write_usd_per_mtok": tier.cache_write_usd_per_mtok,
            "output_usd_per_mtok": tier.output_usd_per_mtok,
        }
        for tier in row.tiers
    ]
    if form is Format.JSON:
        write_json(head | {"tiers": tiers})
        return
    flat = [{**head, "flags": " ".join(head["flags"]), **tier} for tier in tiers]
    wanted = ["model", "from_input_tokens", "input_usd_per_mtok", "cached_input_usd_per_mtok", "output_usd_per_mtok"]
    wanted += ["source", "effective_from_utc", "valid_until_utc", "flags"]
    write_rows(flat, list(flat[0]) if form is Format.CSV else wanted, form)


def check(config: Path | None, form: Format) -> bool:
    """Print what is to be said of the configured models' prices; false when one has no price at all."""
    settings = load_settings(config, serving=False)
    models = [model.price_key for _, model in settings.tiers.api_models()]
    notes = book_of(settings).check(models, datetime.now(UTC))
    rows = [{"kind": note.kind, "model": note.model, "text": note.text} for note in notes]
    if form is Format.JSON:
        write_json({"models": models, "notes": rows})
    elif rows or form is Format.CSV:
        write_rows(rows, ["kind", "model", "text"], form)
    else:
        write_rows([{"model": model, "price": "known, no remark"} for model in models], ["model", "price"], form)
    return all(note.kind != "gap" for note in notes)
