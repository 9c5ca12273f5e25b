"""What the gateway counts, under Prometheus names; alerts also make a log line.

Every label comes from a set that is closed when the gateway starts (tiers, outcomes, reasons, configured models and
tenants); whatever else turns up is `other`, so that no caller can grow the number of series. Counting happens on the
path of every request, so children are bound once and then found in small dicts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from router import __version__
from router.core.attempts import AttemptRecord, RoutingRecord
from router.core.vocabulary import NANO_PER_USD, CircuitState, Flag, Limit, Outcome, Reason, Tier
from router.series import Counters, Histograms, Tally

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
OTHER = "other"
NONE = "none"
MAX_EVENTS = 64

_DURATION_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0)
_FIRST_TOKEN_BUCKETS = (0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 20.0)
_OVERHEAD_BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.5)

# An answer whose books rest on our own count, or on one that had to be set right, is worth a look.
_USAGE_ALERTS = {Flag.USAGE_ESTIMATED: "usage_missing", Flag.USAGE_INCONSISTENT: "usage_inconsistent"}

_log = logging.getLogger("router.alerts")


class PrometheusTelemetry:
    """Implements `ports.Telemetry`. `models` and `tenants` are the names that get series of their own.

    `now_s` paces log lines: an event is logged at most once every `log_every_s` seconds and says how often it was
    left out meanwhile; the metric counts every one.
    """

    def __init__(
        self, *, models: Iterable[str], tenants: Iterable[str], now_s: Callable[[], float], log_every_s: float = 1.0
    ) -> None:
        self._models = frozenset(models)
        self._tenants = frozenset(tenants)
        self._now_s = now_s
        self._log_every_s = log_every_s
        self._logged: dict[str, _LogPace] = {}
        self.registry = _Registry(auto_describe=False)
        self._make_series()
        ProcessCollector(registry=self.registry)
        Gauge("router_build_info", "1, with the version that runs", ["version"], registry=self.registry).labels(
            __version__
        ).set(1)
        self._request_children: dict[tuple[str, str, str], Tally] = {}
        self._cost_children: dict[tuple[str, str, str], Tally] = {}
        self._reason_children = {reason: self._decisions.labels(reason.value) for reason in Reason}
        self._by_tier: dict[Tier | None, _TierSeries] = {tier: _TierSeries(self, tier.value) for tier in Tier}
        self._by_tier[None] = _TierSeries(self, NONE)
        self._by_model: dict[tuple[Tier, str], _ModelSeries] = {}
        self._events: dict[str, Tally] = {}

    def _make_series(self) -> None:
        registry = self.registry

        def counter(name: str, text: str, *labels: str) -> Counters:
            registry.register(made := Counters(name, text, labels))
            return made

        def histogram(name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Histograms:
            registry.register(made := Histograms(name, text, bounds, labels))
            return made

        self._requests = counter(
            "router_requests_total", "Requests by tenant, tier that answered and outcome", "tenant", "tier", "outcome"
        )
        self._decisions = counter("router_decisions_total", "Decisions by reason", "reason")
        self._attempts = counter(
            "router_attempts_total", "Calls made to a model, by outcome", "tier", "model", "outcome"
        )
        self._tokens = counter(
            "router_tokens_total",
            "Tokens by kind; input includes cached_input, output includes reasoning",
            "tier",
            "model",
            "kind",
        )
        self._cost = counter(
            "router_cost_usd_total",
            "Booked cost in USD; a local answer at its standard cost",
            "tenant",
            "tier",
            "model",
        )
        self._duration = histogram(
            "router_request_duration_seconds", "Request, first byte in to last byte out", _DURATION_BUCKETS, "tier"
        )
        self._first_token = histogram(
            "router_first_token_seconds", "Request in to first token out", _FIRST_TOKEN_BUCKETS, "tier"
        )
        self._overhead = histogram(
            "router_overhead_seconds", "Time of a request spent in the gateway itself", _OVERHEAD_BUCKETS
        ).labels()
        self._warnings = counter("router_warnings_total", "Alerts by event", "event")
        self._learning = counter(
            "router_learning_calls_total",
            "What was done to learn from answers, and what was not, by kind and outcome",
            "kind",
            "outcome",
        )
        self._limit_refusals = counter(
            "router_limit_refusals_total", "Requests refused by a limit of their key", "tenant", "limit"
        )
        failures = counter("router_telemetry_failures_total", "Records and readings that could not be counted")
        self._failures = failures.labels()

    def request_done(self, record: RoutingRecord, *, overhead_s: float) -> None:
        """Count a finished request. Never raises: a number that is missing must not cost a caller the answer."""
        try:
            self._count(record, overhead_s)
        except Exception:  # noqa: BLE001 - whatever is wrong with a record is counted, not thrown at the caller
            self._failures.inc()

    def _count(self, record: RoutingRecord, overhead_s: float) -> None:
        tenant = record.tenant if record.tenant in self._tenants else OTHER
        tier: Tier | None = None
        for attempt in record.attempts:
            tier = attempt.tier
            self._count_attempt(attempt, tenant)
        if record.reason is not None:
            self._reason_children[record.reason].inc()
        tier_name = NONE if tier is None else tier.value
        key = (tenant, tier_name, record.outcome.value)
        child = self._request_children.get(key)
        if child is None:
            child = self._request_children[key] = self._requests.labels(*key)
        child.inc()
        series = self._by_tier[tier]
        series.duration.observe(record.duration_s)
        if record.first_token_s is not None:
            series.first_token.observe(record.first_token_s)
        self._overhead.observe(overhead_s)

    def _count_attempt(self, attempt: AttemptRecord, tenant: str) -> None:
        model = attempt.candidate if attempt.candidate in self._models else OTHER
        series = self._by_model.get((attempt.tier, model))
        if series is None:
            series = self._by_model[attempt.tier, model] = _ModelSeries(self, attempt.tier.value, model)
        series.outcomes[attempt.outcome].inc()
        if attempt.outcome is Outcome.CREDENTIALS:
            self.warn("upstream_credentials_refused", model=model)
        elif attempt.outcome is Outcome.NOT_SERVED:
            self.warn("upstream_model_not_found", model=model)
        elif attempt.outcome is Outcome.OK and attempt.charge.flags:
            for flag in attempt.charge.flags:
                if flag in _USAGE_ALERTS:
                    self.warn(_USAGE_ALERTS[flag], model=model)
        usage = attempt.usage
        if usage is not None:
            series.input_tokens.inc(usage.input_tokens)
            series.output_tokens.inc(usage.output_tokens)
            if usage.cached_input_tokens:
                series.cached_input_tokens.inc(usage.cached_input_tokens)
            if usage.reasoning_tokens:
                series.reasoning_tokens.inc(usage.reasoning_tokens)
        if attempt.charge.amount_nanousd:
            key = (tenant, attempt.tier.value, model)
            child = self._cost_children.get(key)
            if child is None:
                child = self._cost_children[key] = self._cost.labels(*key)
            child.inc(attempt.charge.amount_nanousd / NANO_PER_USD)

    def warn(self, event: str, **labels: str) -> None:
        """Count an alert and log it, paced. More than `MAX_EVENTS` different events count as `other`."""
        child = self._events.get(event)
        if child is None:
            name = event if len(self._events) < MAX_EVENTS else OTHER
            child = self._warnings.labels(name)
            if name != OTHER:
                self._events[event] = child
            event = name
        child.inc()
        pace = self._logged.setdefault(event, _LogPace())
        now_s = self._now_s()
        if pace.last_at_s is not None and now_s - pace.last_at_s < self._log_every_s:
            pace.left_out += 1
            return
        fields = {key: str(value)[:200] for key, value in labels.items()}
        if pace.left_out:
            fields["left_out"] = str(pace.left_out)
        pace.last_at_s, pace.left_out = now_s, 0
        _log.warning(event, extra={"fields": fields})

    def limit_refused(self, tenant: str, limit: Limit) -> None:
        """Count, and log now and then, a request that a limit of its key kept out."""
        tenant = tenant if tenant in self._tenants else OTHER
        self._limit_refusals.labels(tenant, limit.value).inc()
        self.warn("key_limited", tenant=tenant, limit=limit.value)

    def learning_done(self, kind: str, outcome: str) -> None:
        """Count a shadow run, a judgement or a check, made or not made; both words come from small closed sets."""
        self._learning.labels(kind, outcome).inc()

    def gauge(self, name: str, text: str, read: Callable[[], float | None]) -> None:
        """A gauge that is read when `/metrics` is; `None` leaves it out, for what is not known."""
        self.registry.register(_LiveGauge(name, text, (), lambda: {(): read()}, self._failures))

    def gauges(
        self,
        name: str,
        text: str,
        label: str,
        read: Callable[[], Mapping[str, float | None]],
        *,
        known: frozenset[str] | None = None,
    ) -> None:
        """The same for one gauge per value of `label`, of which `known` (the models) are shown, others as `other`."""
        shown = self._models if known is None else known

        def bounded() -> dict[tuple[str, ...], float | None]:
            return {(value if value in shown else OTHER,): number for value, number in read().items()}

        self.registry.register(_LiveGauge(name, text, (label,), bounded, self._failures))

    def table(
        self,
        name: str,
        text: str,
        labels: tuple[str, ...],
        read: Callable[[], Mapping[tuple[str, ...], float]],
        *,
        counter: bool = False,
    ) -> None:
        """A gauge (or counter) with several labels, read when `/metrics` is; the reader bounds the number of series."""
        self.registry.register(_LiveGauge(name, text, labels, read, self._failures, counter=counter))

    def states(self, name: str, text: str, states: tuple[str, ...], read: Callable[[], str]) -> None:
        """One series for each of `states` (and `other`), 1 for the current one and 0 for the rest."""

        def one_hot() -> dict[tuple[str, ...], float | None]:
            return {(state,): number for state, number in _one_hot(states, read()).items()}

        self.registry.register(_LiveGauge(name, text, ("state",), one_hot, self._failures))

    def states_of(
        self, name: str, text: str, states: tuple[str, ...], label: str, read: Callable[[], Mapping[str, str]]
    ) -> None:
        """The same for each value of `label`, of which the models are shown."""

        def one_hot() -> dict[tuple[str, ...], float | None]:
            return {
                (value if value in self._models else OTHER, state): number
                for value, current in read().items()
                for state, number in _one_hot(states, current).items()
            }

        self.registry.register(_LiveGauge(name, text, (label, "state"), one_hot, self._failures))

    def watch(
        self,
        *,
        in_flight: Callable[[], int],
        circuits: Callable[[], Mapping[str, CircuitState]],
        ledger: Callable[[], str],
        ledger_states: tuple[str, ...],
    ) -> None:
        """The states every gateway has: requests in flight, circuits (0 closed, 0.5 half open, 1 open), the ledger."""
        values = {CircuitState.CLOSED: 0.0, CircuitState.HALF_OPEN: 0.5, CircuitState.OPEN: 1.0}
        self.gauge("router_requests_in_flight", "Requests that are being handled", in_flight)
        self.gauges(
            "router_circuit_open_ratio",
            "Circuit of each model: 0 closed, 0.5 half open, 1 open",
            "model",
            lambda: {name: values[state] for name, state in circuits().items()},
        )
        self.states("router_ledger_state", "How the books are kept now", ledger_states, ledger)

    def render(self) -> bytes:
        """The exposition in Prometheus' text format (`CONTENT_TYPE`)."""
        return generate_latest(self.registry)


class _Registry(CollectorRegistry):
    """A registry without the `_created` series, which double their number and which nobody here reads."""

    def collect(self) -> Iterator[Metric]:
        """All families, their counters and histograms without `_created`."""
        for family in super().collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


class _TierSeries:
    """Histograms of one tier, bound once."""

    __slots__ = ("duration", "first_token")

    def __init__(self, owner: PrometheusTelemetry, tier: str) -> None:
        self.duration = owner._duration.labels(tier)
        self.first_token = owner._first_token.labels(tier)


class _ModelSeries:
    """Counters of one model, bound once."""

    __slots__ = ("cached_input_tokens", "input_tokens", "outcomes", "output_tokens", "reasoning_tokens")

    def __init__(self, owner: PrometheusTelemetry, tier: str, model: str) -> None:
        self.outcomes = {outcome: owner._attempts.labels(tier, model, outcome.value) for outcome in Outcome}
        self.input_tokens = owner._tokens.labels(tier, model, "input")
        self.output_tokens = owner._tokens.labels(tier, model, "output")
        self.cached_input_tokens = owner._tokens.labels(tier, model, "cached_input")
        self.reasoning_tokens = owner._tokens.labels(tier, model, "reasoning")


@dataclass(slots=True)
class _LogPace:
    """When an event was last logged, and how often it was left out since."""

    last_at_s: float | None = None
    left_out: int = 0


def _one_hot(states: tuple[str, ...], current: str) -> dict[str, float]:
    current = current if current in states else OTHER
    return {state: float(state == current) for state in (*states, OTHER)}


class _LiveGauge:
    """A collector whose values, by the values of `labels`, are read at the moment of the scrape.

    One that fails is left out and counted.
    """

    def __init__(
        self,
        name: str,
        text: str,
        labels: tuple[str, ...],
        read: Callable[[], Mapping[tuple[str, ...], float | None]],
        failures: Tally,
        *,
        counter: bool = False,
    ) -> None:
        self._family = CounterMetricFamily if counter else GaugeMetricFamily
        self._failures = failures
        self._name = name
        self._text = text
        self._labels = labels
        self._read = read

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        family = self._family(self._name, self._text, labels=self._labels)
        try:
            values = self._read()
        except Exception:  # noqa: BLE001 - one reading must not cost us the page with all the others
            self._failures.inc()
            return
        for at, number in values.items():
            if number is not None:
                family.add_metric(at, number)
        yield family
