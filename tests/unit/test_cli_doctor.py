"""What `doctor` finds, one cause at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from local_llm.datamodels import GpuReading
from router.checks import Check, State
from router.commands.doctor import examine
from router.commands.doctor_gpu import GpuLook
from router.settings import parse_settings
from router.stores.engines import parse_url, write_engine
from router.stores.migrations import MIGRATIONS, migrate
from router.stores.schema import metadata

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
KEYS = {"OPENAI_API_KEY": "sk-canary-0123456789", "ROUTER_API_KEY": "canary-router-key"}
API = "tiers: {cheap: {model: openai/gpt-6-luna}, premium: {model: openai/gpt-6.1-sol}}\n"


def found(
    tmp_path: Path,
    text: str = API,
    *,
    claims: Mapping[str, Sequence[str]] | None = None,
    gpus: Sequence[GpuReading] = (),
    gpu_problem: str | None = None,
    environ: Mapping[str, str] = KEYS,
) -> dict[str, Check]:
    settings = parse_settings(text, {"ROUTER_SERVER__DATA_DIR": str(tmp_path), **environ})
    seen = GpuLook(tuple(gpus), gpu_problem)
    checks = examine(settings, at_utc=NOW, claims=claims or {}, seen=seen, environ={})
    return {check.name: check for check in checks}


def test_keys_are_told_to_be_set_and_never_shown(tmp_path: Path) -> None:
    checks = found(tmp_path)
    assert checks["tier cheap: openai/gpt-6-luna"].detail == "OPENAI_API_KEY is set"
    assert "canary" not in repr(list(checks.values()))


def test_another_distribution_with_our_package_is_a_failure(tmp_path: Path) -> None:
    claims = {"router": ["hybrid-llm-router", "router"], "classifier": ["hybrid-llm-router"]}
    check = found(tmp_path, claims=claims)["package router"]
    assert (check.state, check.detail) == (State.FAIL, "is also claimed by router")
    assert "packages" in found(tmp_path, claims={"router": ["hybrid-llm-router"]})


def test_a_key_that_leaves_in_the_clear_is_a_warning(tmp_path: Path) -> None:
    def state(api_base: str) -> State:
        text = f"tiers: {{cheap: {{model: openai/a, api_base: '{api_base}', api_key_env: OPENAI_API_KEY}}}}"
        return found(tmp_path, text)["tier cheap: openai/a"].state

    assert state("http://10.0.0.1/v1") is State.WARN
    assert state("https://10.0.0.1/v1") is state("http://127.0.0.1/v1") is State.OK


def test_what_keys_may_use_is_told_and_that_budgets_are_not_divided(tmp_path: Path) -> None:
    checks = found(tmp_path)
    assert (checks["limits"].state, checks["metrics"].state) == (State.OFF, State.OFF)
    assert "budgets" not in checks
    environ = {
        **KEYS,
        "ROUTER_SERVER__AUTH__DEFAULT_LIMITS__REQUESTS_PER_MIN": "60",
        "ROUTER_SERVER__GATEWAYS": "2",
        "ROUTER_POLICY__BUDGET_USD_PER_DAY": "10",
    }
    checks = found(tmp_path, environ=environ)
    assert checks["limits"].detail == "1 of 1 keys are limited; this gateway gives out 1/2 of them"
    assert checks["budgets"].state is State.WARN


def test_keys_that_do_nothing_are_named(tmp_path: Path) -> None:
    checks = found(tmp_path, environ={**KEYS, "ROUTER_PORT": "tcp://x:1"})
    assert checks["environment ROUTER_PORT"].state is State.WARN


def test_money_spent_on_learning_without_a_label_to_come_is_a_warning(tmp_path: Path) -> None:
    assert "learning" not in found(tmp_path)
    local = "tiers: {local: {engine: embedded}}\nserver: {store_prompts: true}\n"
    check = found(tmp_path, local + "learning: {shadow: {ratio: 0.1}, exact_checks: true}")["learning"]
    assert check.state is State.WARN and "no second tier" in check.detail
    check = found(tmp_path, API + "policy: {exploration_ratio: 0.05}")["learning"]
    assert check.state is State.WARN and check.cure == "set server.store_prompts: true"
    check = found(tmp_path, API + "policy: {exploration_ratio: 0.05}\nserver: {store_prompts: true}")["learning"]
    assert (check.state, check.detail) == (State.OK, "explores 5.0%")


def test_the_price_of_each_model_is_shown_with_its_source(tmp_path: Path) -> None:
    check = found(tmp_path)["price openai/gpt-6-luna"]
    assert check.state is State.OK
    assert check.detail.startswith("0.1 in, 0.5 out USD per million tokens; genai-prices")


def test_a_model_without_a_price_is_a_failure_with_a_cure(tmp_path: Path) -> None:
    check = found(tmp_path, "tiers: {cheap: {model: own/model, api_base: 'http://h/v1'}}")["price own/model"]
    assert check.state is State.FAIL and "price:" in check.cure


def test_a_price_change_to_come_is_a_warning(tmp_path: Path) -> None:
    text = "tiers: {cheap: {model: gemini/gemini-4-argon, api_key_env: OPENAI_API_KEY}}"
    check = found(tmp_path, text)["price change gemini/gemini-4-argon"]
    assert check.state is State.WARN and "2026-12-01" in check.detail


def test_a_database_that_does_not_exist_yet_is_fine_and_is_not_made(tmp_path: Path) -> None:
    check = found(tmp_path)["database"]
    assert check.state is State.OK and "does not exist yet" in check.detail
    assert list(tmp_path.iterdir()) == []


def test_the_schema_version_of_the_database_is_told(tmp_path: Path) -> None:
    engine = write_engine(parse_url(f"sqlite:///{tmp_path / 'router.db'}"))
    migrate(engine)
    engine.dispose()
    check = found(tmp_path)["database"]
    assert check.state is State.OK and check.detail.endswith(f"has schema {len(MIGRATIONS)}")


def test_a_newer_schema_is_a_failure(tmp_path: Path) -> None:
    engine = write_engine(parse_url(f"sqlite:///{tmp_path / 'router.db'}"))
    migrate(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO schema_version SELECT max(version) + 1, 0 FROM schema_version")
    engine.dispose()
    check = found(tmp_path)["database"]
    assert check.state is State.FAIL and "newer" in check.detail


def test_a_file_that_is_no_database_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "router.db").write_bytes(b"not a database" * 100)
    assert found(tmp_path)["database"].state is State.FAIL


def test_somebody_elses_tables_are_a_failure(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "router.db") as connection:
        connection.execute(f"CREATE TABLE {next(iter(metadata.tables))} (x)")
    connection.close()
    assert found(tmp_path)["database"].state is State.FAIL


def test_a_database_server_that_is_away_is_named_without_its_password(tmp_path: Path) -> None:
    url = "postgresql://user:canary@127.0.0.1:1/books"
    check = found(tmp_path, environ={**KEYS, "ROUTER_SERVER__DATABASE_URL": url})["database"]
    assert check.state is State.FAIL
    assert "user:***@127.0.0.1:1/books" in check.detail and "canary" not in check.detail


@pytest.mark.parametrize(
    ("gpu", "state", "detail"),
    [
        (GpuReading(0, "H100", memory_total_bytes=80 * 2**30), State.OK, "80 GiB"),
        (GpuReading(0, "H100"), State.OK, "memory not told"),
        (GpuReading(0, "H100", throttle_reasons=("hw_thermal",)), State.WARN, "is slowed down: hw_thermal"),
        (GpuReading(0, "H100", problem="GPU is lost"), State.FAIL, "GPU is lost"),
    ],
)
def test_each_gpu_is_told(tmp_path: Path, gpu: GpuReading, state: State, detail: str) -> None:
    check = found(tmp_path, gpus=[gpu])["gpu 0: H100"]
    assert (check.state, check.detail) == (state, detail)


def test_no_gpu_is_no_failure(tmp_path: Path) -> None:
    check = found(tmp_path, gpu_problem="no NVIDIA driver")["gpu"]
    assert (check.state, check.detail) == (State.OFF, "no NVIDIA driver")


def test_an_external_engine_that_is_away_is_a_warning(tmp_path: Path) -> None:
    text = "tiers: {local: {engine: external, model: m, api_base: 'http://127.0.0.1:1/v1'}}"
    checks = found(tmp_path, text)
    assert checks["tier local: external"].state is State.WARN
    assert checks["engine coefficients"].state is State.WARN


def test_a_vllm_that_is_not_installed_is_a_failure_with_a_cure(tmp_path: Path) -> None:
    text = f"tiers: {{local: {{engine: vllm, model: m, launch: {{executable: '{tmp_path}/vllm'}}}}}}"
    check = found(tmp_path, text)["tier local: vllm"]
    assert check.state is State.FAIL and "make engine" in check.cure


def test_levers_that_are_off_are_named_with_the_setting_that_turns_them_on(tmp_path: Path) -> None:
    checks = found(tmp_path)
    assert checks["lever routing"].state is State.OK
    assert checks["lever budget usd per day"] == Check(
        "lever budget usd per day", State.OFF, "not set", "set policy.budget_usd_per_day"
    )
    on = found(tmp_path, API + "policy: {budget_usd_per_day: 5}")["lever budget usd per day"]
    assert (on.state, on.detail) == (State.OK, "5 USD")
    unpriced = "tiers: {local: {engine: vllm, model: m, launch: {executable: sh}}}"
    assert found(tmp_path, unpriced)["lever hardware in the books"].state is State.OFF


def test_hardware_that_is_not_priced_is_named_engine_by_engine(tmp_path: Path) -> None:
    text = """
tiers:
  local:
    engine: external
    model: m
    engines:
      - {name: a, api_base: 'http://127.0.0.1:1/v1', hardware: {kind: rented, usd_per_hour: 1}}
      - {name: b, api_base: 'http://127.0.0.1:2/v1'}
"""
    lever = found(tmp_path, text)["lever hardware in the books"]
    assert (lever.state, lever.detail) == (State.OFF, "some local answers are booked at 0")
    assert lever.cure == "set tiers.local.engines[1].hardware"
    priced = found(tmp_path, text.replace("2/v1'}", "2/v1', hardware: {kind: rented, usd_per_hour: 1}}"))
    assert priced["lever hardware in the books"].state is State.OK
