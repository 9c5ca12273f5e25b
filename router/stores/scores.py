"""Scores and opinions in the books: what drift of the classifier is judged by. Writes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import Engine, and_, select

from classifier.datamodels import Score
from router.core.vocabulary import Outcome
from router.stores.queries import look
from router.stores.schema import attempt, feedback, request


def recent_scores(engine: Engine, model_version: str, *, most: int) -> list[Score]:
    """Of the last `most` scored requests those that `model_version` scored, newest first."""
    r = request.c
    query = select(r.score).where(r.score.is_not(None)).order_by(r.request_id.desc()).limit(most)
    with look(engine) as connection:  # ids sort by time, and theirs is the index there is
        found = connection.scalars(query).all() if connection is not None else []
    scores = (msgspec.json.decode(text, type=Score) for text in found)
    return [score for score in scores if score.model_version == model_version]


def judged_scores(engine: Engine, model_version: str, *, most: int) -> Sequence[tuple[float, float]]:
    """(p of the answer, quality 0..1 by its user) of the last `most` opinions on what `model_version` scored."""
    a, f, r = attempt.c, feedback.c, request.c
    query = (
        select(r.score, a.tier, a.candidate, f.score.label("quality"))
        .select_from(feedback)
        .join(request, and_(r.request_id == f.request_id, r.tenant == f.tenant))
        .join(attempt, and_(a.request_id == f.request_id, a.is_last == 1))
        .where(r.score.is_not(None), a.outcome == Outcome.OK.value)
        .order_by(f.received_at_us.desc())
        .limit(most)
    )
    with look(engine) as connection:
        rows = connection.execute(query).all() if connection is not None else []
    judged = ((msgspec.json.decode(row[0], type=Score), *row[1:]) for row in rows)
    return [(s.p(tier, name), float(quality)) for s, tier, name, quality in judged if s.model_version == model_version]
