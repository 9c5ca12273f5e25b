"""The cold routes: models, explain, estimate, usage, feedback, health, metrics. Thin; rules live elsewhere."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from router import __version__
from router.api.auth import Caller
from router.api.body import ClientDisconnected, read_body
from router.api.chat import lower_headers
from router.api.explained import estimated, explained
from router.api.face import Face
from router.api.schemas import decode_chat
from router.core.chat import ChatRequest
from router.core.days import midnight, midnight_after
from router.core.decision import Candidate
from router.core.virtual_models import VIRTUAL_MODELS
from router.core.vocabulary import Tier
from router.errors import BadRequest, Forbidden, NotFound
from router.flow import consider, describe

_BEST_FIRST = ("ready", "asleep", "starting", "cooling down", "unavailable")
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Feedback(BaseModel):
    """How good an answer was: 0 useless, 1 as wished."""

    model_config = ConfigDict(extra="forbid")

    request_id: Annotated[str, Field(min_length=1, max_length=100)]
    score: Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False, strict=True)]
    comment: Annotated[str | None, Field(max_length=4000)] = None


# Read by ourselves, since the framework would take a body of any size, and look at it before the key.
_FEEDBACK_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": Feedback.model_json_schema()}}}
}
_DATE: dict[str, Any] = {"format": "date"}


def cold_routes(face: Face) -> APIRouter:
    """All of them, each also without the `/v1` prefix where clients leave it out."""
    routes = APIRouter()

    def caller_of(request: Request) -> Caller:
        return _caller(request, face)

    async def chat_of(request: Request) -> ChatRequest:
        return decode_chat(await whole_body(request, face), lower_headers(request.scope))

    @routes.get("/v1/models", tags=["models"])
    @routes.get("/models", include_in_schema=False)
    async def models(request: Request) -> JSONResponse:
        """Virtual and real models, with limits."""
        caller_of(request)
        return JSONResponse({"object": "list", "data": model_cards(face)})

    @routes.get("/v1/models/{name:path}", tags=["models"])
    async def model(request: Request, name: str) -> JSONResponse:
        """One of them."""
        caller_of(request)
        for card in model_cards(face):
            if name in (card["id"], card.get("configured_as")):
                return JSONResponse(card)
        raise NotFound(f"Model {name[:100]!r} is not configured.", code="model_not_found", param="model")

    @routes.post("/v1/route/explain", tags=["routing"])
    async def explain(request: Request) -> JSONResponse:
        """The decision for a chat completion body, without a call."""
        caller = caller_of(request)
        seen = describe(await chat_of(request), caller.tenant, face.deps)
        decision, _ = consider(seen, face.deps)
        return JSONResponse(explained(seen, decision), headers={"x-request-id": seen.facts.request_id})

    @routes.post("/v1/estimate", tags=["routing"])
    async def estimate(request: Request) -> JSONResponse:
        """The cost of a chat completion body without a call; or of `{model, input_tokens, output_tokens}`."""
        caller = caller_of(request)
        body = await request_json(request, face)
        if "messages" not in body:
            return JSONResponse(bare_estimate(face, body), headers={"x-request-id": face.deps.new_id()})
        seen = describe(await chat_of(request), caller.tenant, face.deps)
        decision, _ = consider(seen, face.deps)
        return JSONResponse(estimated(seen, decision), headers={"x-request-id": seen.facts.request_id})

    add_books(routes, face)
    add_health(routes, face)
    add_index(routes)
    return routes


def add_books(routes: APIRouter, face: Face) -> None:
    """What callers say of answers, and what they have spent."""

    @routes.post("/v1/feedback", tags=["learning"], openapi_extra=_FEEDBACK_BODY)
    async def feedback(request: Request) -> JSONResponse:
        """Kept for the learner; the last one for a request counts."""
        caller = _caller(request, face)
        given = read_feedback(await request_json(request, face))
        tenant = None if caller.admin else caller.tenant
        if not await face.books.add_feedback(given.request_id, tenant, given.score, given.comment):
            raise NotFound(
                f"There is no request {given.request_id!r} of yours.", code="request_not_found", param="request_id"
            )
        return JSONResponse({"request_id": given.request_id, "score": given.score, "status": "stored"})

    @routes.get("/v1/usage", tags=["money"])
    async def usage(
        request: Request,
        start: Annotated[str | None, Query(alias="from", json_schema_extra=_DATE)] = None,
        end: Annotated[str | None, Query(alias="to", json_schema_extra=_DATE)] = None,
        tenant: str | None = None,
    ) -> JSONResponse:
        """Spend by day, tenant, tier and model; an admin sees all, anybody else their own. `to` is inclusive."""
        caller = _caller(request, face)  # before anything the caller sent is judged
        if tenant is not None and tenant != caller.tenant and not caller.admin:
            raise Forbidden("This key may see its own usage only; leave tenant out.", param="tenant")
        from_utc, to_utc = midnight(_day(start, "from")), midnight_after(_day(end, "to"))
        report = await face.books.costs(from_utc, to_utc, tenant if caller.admin else caller.tenant)
        return JSONResponse(report.as_dict())


def add_health(routes: APIRouter, face: Face) -> None:
    """Liveness, readiness, metrics: open to whoever can reach the port (metrics may have a key), and free of charge."""

    @routes.get("/health/liveness", tags=["health"])
    @routes.get("/health/liveliness", include_in_schema=False)
    async def liveness() -> JSONResponse:
        """The process answers."""
        return JSONResponse({"status": "alive"})

    @routes.get("/health/readiness", tags=["health"])
    @routes.get("/health", include_in_schema=False)
    async def readiness() -> JSONResponse:
        """200 `ready` or `degraded` while one tier can answer, else 503."""
        status, details = face.readiness()
        return JSONResponse({"status": status, **details}, 503 if status == "unavailable" else 200)

    @routes.get("/metrics", tags=["health"])
    async def metrics(request: Request) -> Response:
        """Prometheus text. Open, unless the config names a key for it."""
        face.authenticator.authenticate_scrape(lower_headers(request.scope))
        return Response(face.metrics(), media_type=_METRICS_TYPE)

    @routes.post("/v1/chat/completions", tags=["chat"])
    async def chat_completions(_body: dict[str, Any]) -> JSONResponse:
        """A chat completion in OpenAI's shape, plain or streaming.

        `model`: auto, auto:cheap, auto:quality, auto:local, a tier name, or a real model name. Controls: `x-router-*`
        headers or a `router` member. Unknown fields pass through. (Served in front of this application; here for the
        docs.)
        """
        raise NotFound("The chat route is served in front of this application.")


def add_index(routes: APIRouter) -> None:
    """What a browser sees at the address that `serve` prints."""

    @routes.get("/", include_in_schema=False)
    async def index() -> JSONResponse:
        """Every route in one line; the full description is `/openapi.json`."""
        told = [
            {"route": f"{method} {route.path_format}", "does": (route.description or "").partition("\n")[0]}
            for route in routes.routes
            if isinstance(route, APIRoute) and route.include_in_schema
            for method in sorted(route.methods or ())
        ]
        told.sort(key=lambda entry: "/chat/" not in entry["route"])  # what most people look for
        return JSONResponse({"name": "hybrid-llm-router", "version": __version__, "routes": told})


async def whole_body(request: Request, face: Face) -> bytes:
    """The body, within the same bounds as on the chat route."""
    headers = lower_headers(request.scope)
    try:
        return await read_body(request.receive, headers, max_bytes=face.max_body_bytes, timeout_s=face.body_timeout_s)
    except ClientDisconnected:
        raise BadRequest("The body was not sent.") from None


async def request_json(request: Request, face: Face) -> dict[str, Any]:
    """A JSON object body; the raw body stays readable for a second reader."""
    from router.api.raw_json import decode_object

    body = await whole_body(request, face)

    async def again() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    request._receive = again
    return decode_object(body)[0]


def bare_estimate(face: Face, body: dict[str, Any]) -> dict[str, Any]:
    """Cost of given token counts on a named model."""
    model, counts = body.get("model"), [body.get("input_tokens"), body.get("output_tokens")]
    if not isinstance(model, str):
        raise BadRequest("model must name a model.", param="model")
    for name, value in zip(("input_tokens", "output_tokens"), counts, strict=True):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 10**9:
            raise BadRequest(f"{name} must be a whole number from 0 to 1e9 (or send messages).", param=name)
    return dict(face.price_estimate(model, int(counts[0] or 0), int(counts[1] or 0)))


def model_cards(face: Face) -> list[dict[str, Any]]:
    """What `/v1/models` lists. A virtual model's window is the widest that may answer it."""
    live = [c for c in face.deps.candidates if c.unavailable is None]
    widest = max((c.context_window_tokens for c in live), default=0)
    narrow = max((c.context_window_tokens for c in live if c.tier.value == "local"), default=0)
    cards: list[dict[str, Any]] = [
        {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "hybrid-llm-router",
            "virtual": True,
            "max_input_tokens": narrow if name == "auto:local" else widest,
        }
        for name in VIRTUAL_MODELS
    ]
    by_model: dict[tuple[Tier, str], list[Candidate]] = {}
    for candidate in face.deps.candidates:
        by_model.setdefault((candidate.tier, candidate.model), []).append(candidate)
    return cards + [_card(face, those) for those in by_model.values()]


def _card(face: Face, those: list[Candidate]) -> dict[str, Any]:
    """One real model: its limits and state are those of the best of the engines that serve it."""
    states = [(c, *face.candidate_state(c)) for c in those]
    candidate, state, why = min(
        states, key=lambda found: (_BEST_FIRST.index(found[1]), -found[0].context_window_tokens)
    )
    card = {
        "id": candidate.wire_model,
        "object": "model",
        "created": 0,
        "owned_by": candidate.provider,
        "configured_as": candidate.model,
        "virtual": False,
        "tier": candidate.tier.value,
        "state": state,
        "detail": why,
        "max_input_tokens": candidate.context_window_tokens,
        "max_output_tokens": candidate.max_output_tokens,
        "supports_tools": candidate.supports_tools,
        "supports_images": candidate.supports_images,
    }
    if candidate.name != candidate.model:
        card["engines"] = [{"name": c.name, "state": its_state, "detail": its_why} for c, its_state, its_why in states]
    return card


def read_feedback(body: dict[str, Any]) -> Feedback:
    """The feedback in a decoded body. Raises `BadRequest`, `param` naming the field."""
    try:
        return Feedback.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:100]
        raise BadRequest(f"{where}: {first['msg']}", param=where) from None


def _day(text: str | None, param: str) -> date | None:
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError:
        raise BadRequest(f"{param} must be a day such as 2026-11-01", code="invalid_value", param=param) from None


def _caller(request: Request, face: Face) -> Caller:
    return face.authenticator.authenticate(lower_headers(request.scope))
