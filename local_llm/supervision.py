"""The life of a supervised engine as a state machine: (state, event, now_s) -> (state, actions). Pure.

    STOPPED --start--> STARTING --healthy--> READY --exit or unhealthy--> DOWN --back-off--> STARTING
                          |                                                ^
                          +---------- exit, or not ready in time ----------+--- too often ---> FAILED --rest--> STARTING

Starts are backed off exponentially and bounded; an engine that fails too often in a row is given up, and tried again
only after a long rest. A long enough time in READY forgives earlier failures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from local_llm.datamodels import EngineKind, ProcessState


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When to try again. `ready_timeout_s` must cover loading the model, and downloading it the first time."""

    ready_timeout_s: float = 60.0
    backoff_first_s: float = 1.0
    backoff_factor: float = 2.0
    backoff_max_s: float = 60.0
    max_failures: int = 5
    rest_s: float = 600.0
    stable_after_s: float = 60.0
    unhealthy_after: int = 5


def policy_for(kind: EngineKind) -> RestartPolicy:
    """What suits an engine: vLLM loads for minutes, and the first time downloads its model."""
    return RestartPolicy(ready_timeout_s=1800.0 if kind is EngineKind.VLLM else 60.0)


class Action(StrEnum):
    """What the machine wants done."""

    SPAWN = "spawn"
    KILL = "kill"


@dataclass(frozen=True, slots=True)
class StartAsked:
    """Someone wants the engine to run; forgives earlier failures."""


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Someone wants the engine not to run."""


@dataclass(frozen=True, slots=True)
class Healthy:
    """The engine answers."""


@dataclass(frozen=True, slots=True)
class Unhealthy:
    """The engine is alive and does not answer well. `fatal`: it says itself that it is dead."""

    problem: str
    fatal: bool = False


@dataclass(frozen=True, slots=True)
class Exited:
    """The process is gone, or could not be started."""

    problem: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = StartAsked | StopAsked | Healthy | Unhealthy | Exited | Tick


@dataclass(frozen=True, slots=True)
class Supervised:
    """State of one engine. `alive`: a process exists; `retry_at_s`: when to start it again, if it is to be."""

    phase: ProcessState = ProcessState.STOPPED
    alive: bool = False
    failures: int = 0
    unhealthy_in_a_row: int = 0
    since_s: float = 0.0
    retry_at_s: float = math.inf
    problem: str | None = None
    starts: int = 0

    def wake_at_s(self, policy: RestartPolicy) -> float:
        """When the next `Tick` can matter; infinity if never."""
        if self.phase is ProcessState.STARTING:
            return self.since_s + policy.ready_timeout_s
        return self.retry_at_s


Step = tuple[Supervised, tuple[Action, ...]]


def backoff_s(policy: RestartPolicy, failures: int) -> float:
    """Seconds to wait after the `failures`-th failure in a row (1, 2, ...)."""
    exponent = min(max(failures - 1, 0), 64)
    return min(policy.backoff_max_s, policy.backoff_first_s * policy.backoff_factor**exponent)


def step(state: Supervised, event: Event, now_s: float, policy: RestartPolicy) -> Step:
    """One transition. Total: an event that makes no sense in a state changes nothing."""
    match event:
        case StartAsked():
            if state.phase in (ProcessState.STARTING, ProcessState.READY):
                return state, ()
            return _spawn(replace(state, failures=0), now_s)
        case StopAsked():
            stopped = Supervised(since_s=now_s, starts=state.starts)
            return stopped, (Action.KILL,) if state.alive else ()
        case Exited(problem):
            if not state.alive:
                return state, ()
            return _failed(replace(state, alive=False), problem, now_s, policy)
        case Healthy():
            return _healthy(state, now_s, policy), ()
        case Unhealthy(problem, fatal):
            return _unhealthy(state, problem, fatal, now_s, policy)
        case Tick():
            return _tick(state, now_s, policy)


def _spawn(state: Supervised, now_s: float) -> Step:
    actions = (Action.KILL, Action.SPAWN) if state.alive else (Action.SPAWN,)
    started = replace(
        state,
        phase=ProcessState.STARTING,
        alive=True,
        unhealthy_in_a_row=0,
        since_s=now_s,
        retry_at_s=math.inf,
        starts=state.starts + 1,
    )
    return started, actions


def _failed(state: Supervised, problem: str, now_s: float, policy: RestartPolicy) -> Step:
    """A start or a run has ended badly: back off, or give up. Kills what is still alive."""
    stable = state.phase is ProcessState.READY and now_s - state.since_s >= policy.stable_after_s
    failures = 1 if stable else state.failures + 1
    given_up = failures >= policy.max_failures
    wait_s = policy.rest_s if given_up else backoff_s(policy, failures)
    failed = replace(
        state,
        phase=ProcessState.FAILED if given_up else ProcessState.DOWN,
        alive=False,
        failures=failures,
        unhealthy_in_a_row=0,
        since_s=now_s,
        retry_at_s=now_s + wait_s,
        problem=problem,
    )
    return failed, (Action.KILL,) if state.alive else ()


def _healthy(state: Supervised, now_s: float, policy: RestartPolicy) -> Supervised:
    if not state.alive:
        return state
    if state.phase is ProcessState.STARTING:
        return replace(state, phase=ProcessState.READY, since_s=now_s, unhealthy_in_a_row=0, problem=None)
    stable = now_s - state.since_s >= policy.stable_after_s
    return replace(state, unhealthy_in_a_row=0, problem=None, failures=0 if stable else state.failures)


def _unhealthy(state: Supervised, problem: str, fatal: bool, now_s: float, policy: RestartPolicy) -> Step:
    if not state.alive or state.phase is not ProcessState.READY:
        return state, ()  # while it loads, silence is what is to be expected
    in_a_row = state.unhealthy_in_a_row + 1
    if fatal or in_a_row >= policy.unhealthy_after:
        return _failed(state, problem, now_s, policy)
    return replace(state, unhealthy_in_a_row=in_a_row, problem=problem), ()


def _tick(state: Supervised, now_s: float, policy: RestartPolicy) -> Step:
    if state.phase is ProcessState.STARTING and now_s - state.since_s >= policy.ready_timeout_s:
        return _failed(state, f"not ready after {policy.ready_timeout_s:g} s", now_s, policy)
    if state.phase in (ProcessState.DOWN, ProcessState.FAILED) and now_s >= state.retry_at_s:
        if state.phase is ProcessState.FAILED:
            # one try after the rest: the next failure gives up again at once
            return _spawn(replace(state, failures=policy.max_failures - 1), now_s)
        return _spawn(state, now_s)
    return state, ()
