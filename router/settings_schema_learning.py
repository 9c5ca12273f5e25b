"""The config's sections of the classifier and of learning; see `settings_schema`."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import Field

from router.settings_fields import Number, Ratio, Seconds, Section, Text, Usd


class ShadowFile(Section):
    """Shadow runs: some requests are also sent to another tier, beside the answer, to learn how good it would be."""

    ratio: Ratio = Field(
        0.0,
        description=(
            "share of requests sent to another tier as well after their answer is out, 0..1; never local-only or "
            "pinned ones; default 0: none"
        ),
    )
    budget_usd_per_day: Usd = Field(Decimal(1), description="most that shadow runs may cost in USD a day (UTC)")
    max_concurrent: Annotated[int, Number, Field(ge=1, le=64)] = Field(
        2, description="shadow runs and judgements at a time; what would be more is dropped"
    )


class JudgeFile(Section):
    """A model that judges the two answers of a shadow run, blind and in both orders."""

    model: Text | None = Field(
        None, description="name of a configured model; default none: shadow runs are judged by exact checks only"
    )
    ratio: Ratio = Field(1.0, description="share of shadow runs that are judged, 0..1")
    budget_usd_per_day: Usd = Field(Decimal(1), description="most that judging may cost in USD a day (UTC)")


class LearningFile(Section):
    """How the gateway finds out how good answers are, besides feedback. Nothing of it delays an answer."""

    shadow: ShadowFile = Field(ShadowFile(), description="shadow runs")
    judge: JudgeFile = Field(JudgeFile(), description="a model that judges")
    exact_checks: bool = Field(
        False,
        description=(
            "check answers that are right or wrong by themselves: JSON, a schema, the arguments of tool calls, the "
            "result of a prompt that is a calculation"
        ),
    )
    exclude_tenants: tuple[Text, ...] = Field(
        (), description="tenants whose requests are never shadowed, judged, checked or exported as labels"
    )


class ClassifierFile(Section):
    """What says how likely each tier's answer is adequate."""

    model: Text = Field(
        "auto",
        description=(
            "auto: the promoted model, else the shipped one; shipped: that one whatever was promoted; heuristic: "
            "length and a few patterns, uncalibrated; else the folder of a trained model"
        ),
    )
    registry_dir: Text | None = Field(
        None,
        description="folder of promoted models, which serve watches and promote writes to; default models in data_dir",
    )
    confidence_ratio: Annotated[float, Number, Field(ge=0.5, lt=1)] = Field(
        0.9, description="how sure to be that a quality target is kept on requests like those of the model's sample"
    )
    max_score_s: Seconds = Field(
        0.05,
        description=(
            "seconds a score may take; a model that takes longer several times in a row is left out for a while, and "
            "the heuristic scores"
        ),
    )
