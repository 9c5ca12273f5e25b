"""What the sections of a config are made of: figures with their bounds, texts, and the base of every section."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from router.core.dated_prices import MAX_USD_PER_MTOK


def _no_bool(value: Any) -> Any:
    """`port: true` is a mistake, not port 1."""
    if isinstance(value, bool):
        raise ValueError("should be a number, not true or false")
    return value


Number = BeforeValidator(_no_bool)
Count = Annotated[int, Number, Field(ge=1)]
Seconds = Annotated[float, Number, Field(gt=0, le=86_400)]
Ratio = Annotated[float, Number, Field(ge=0, le=1)]
PositiveRatio = Annotated[float, Number, Field(gt=0, le=1)]
StepSeconds = Annotated[float, Number, Field(ge=0, le=60)]
Usd = Annotated[Decimal, Number, Field(ge=0, le=Decimal(1_000_000_000))]
UsdPerMtok = Annotated[Decimal, Number, Field(ge=0, le=MAX_USD_PER_MTOK)]
MigSlices = Annotated[int, Number, Field(ge=1, le=7)]
Text = Annotated[str, Field(min_length=1, max_length=500)]
EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,199}$")]


class Section(BaseModel):
    """Base of every section: frozen, no unknown keys, no infinities."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())
