"""Peers are set up as the performance page says, and their line in its table is computed as it says."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.contestants import API_KEY, Contestant
from bench.peers import (
    PEERS,
    STAMP,
    Peer,
    entries,
    is_installed,
    litellm_config,
    node_manifest,
    portkey_wire,
    tensorzero_config,
)
from bench.peers_report import BEGIN, END, document_peers, peer_figures, peers_block, peers_table
from bench.wire import OPENAI, Wire

BASE = "http://127.0.0.1:9/v1"
RATE = {"direct": 90_000.0, "gateway": 2_000.0, "Slow": 100.0, "Lean": 8_000.0}
P50_US = {"direct": 20.0, "gateway": 520.0, "Slow": 10_020.0, "Lean": 220.0}


def never(_folder: Path, _upstream_port: int, _core: int | None, _work_dir: Path) -> Contestant:
    raise AssertionError("a peer that is not there was started")


def windows() -> list[dict[str, Any]]:
    """Three rounds, the machine half as fast in each as in the one before."""
    return [
        {
            "round": number,
            "phase": phase,
            "contestant": name,
            "latency_us": {"p50": P50_US[name], "p99": P50_US[name] + 1_000.0 * number},
            "requests_per_s": RATE[name] / 2**number,
            "cpu_us_per_request": P50_US[name] * 2**number,
        }
        for number in range(3)
        for phase in ("one_in_flight", "sixteen_in_flight")
        for name in RATE
    ]


@pytest.fixture
def figures() -> dict[str, dict[str, float]]:
    contestants = [name for name in RATE if name != "direct"]
    return peer_figures(windows(), {name: [3.0, 1.0, 2.0] for name in contestants}, dict.fromkeys(contestants, 100.0))


def test_every_version_is_exact_and_every_folder_its_own() -> None:
    assert all(requirement.count("==") == 1 for peer in PEERS for requirement in peer.requirements)
    assert all(version[0].isdigit() for peer in PEERS for _, version in peer.modules)
    assert [peer.folder for peer in PEERS] == ["litellm", "portkey", "fastapi-aiohttp", "tensorzero"]


def test_litellm_forwards_the_model_that_is_asked_for_and_checks_its_key() -> None:
    config = yaml.safe_load(litellm_config(BASE))
    (model,) = config["model_list"]
    assert (model["model_name"], model["litellm_params"]["api_base"]) == (OPENAI.model, BASE)
    assert config["general_settings"]["master_key"] == API_KEY
    assert config["litellm_settings"]["set_verbose"] is False


def test_tensorzero_forwards_without_keeping_records() -> None:
    config = tomllib.loads(tensorzero_config(BASE))
    assert config["gateway"]["observability"]["enabled"] is False
    assert config["models"]["bench"]["providers"]["upstream"]["api_base"] == BASE + "/"


def test_portkey_is_told_in_every_request_where_to_go() -> None:
    wire = portkey_wire(BASE)
    assert wire.header_pairs() == {"x-portkey-provider": "openai", "x-portkey-custom-host": BASE}
    assert wire.load_flags()[2:4] == ["-H", "x-portkey-provider: openai"]


def test_a_wire_without_headers_only_names_its_path() -> None:
    assert Wire(path="/openai/v1").load_flags() == ["-p", "/openai/v1"]


def test_what_is_installed_is_told_by_its_versions(tmp_path: Path) -> None:
    old = Peer("Peer", 1.0, never, modules=(("gateway", "1.0.0"),))
    new = Peer("Peer", 1.0, never, modules=(("gateway", "1.0.1"),))
    (tmp_path / old.folder).mkdir()
    assert not is_installed(old, tmp_path)
    (tmp_path / old.folder / STAMP).write_text(json.dumps([old.requirements, old.modules]))
    assert is_installed(old, tmp_path)
    assert not is_installed(new, tmp_path)
    assert json.loads(node_manifest(new))["dependencies"] == {"gateway": "1.0.1"}


def test_a_peer_that_cannot_be_had_is_named_with_the_reason(tmp_path: Path) -> None:
    occupied = tmp_path / "a-file"
    occupied.write_text("")
    said: list[str] = []
    peers = [
        Peer("Commandless", 1.0, never, modules=(("gateway", "1.0.0"),), commands=("no-such-command",)),
        Peer("Roomless", 1.0, never, requirements=("gateway==1.0.0",)),
        Peer("Ours", 1.0, never),
    ]
    ready, absent = entries(said.append, occupied, peers)
    assert [entry.name for entry in ready] == ["Ours"]
    assert all(entry.optional for entry in ready)
    assert absent["Commandless"] == "no-such-command not on this machine"
    assert "Not a directory" in absent["Roomless"]
    assert said == ["installing Roomless 1.0.0 into a-file/roomless"]


def test_ratios_are_taken_within_a_round_and_figures_are_medians(figures: dict[str, dict[str, float]]) -> None:
    slow = figures["Slow"]
    assert slow["rate_ratio"] == pytest.approx(20.0)
    assert slow["cpu_ratio"] == pytest.approx(10_020 / 520)
    assert slow["requests_per_s"] == pytest.approx(50.0)
    assert slow["added_p50_ms"] == pytest.approx(10.0)
    assert slow["added_p99_ms"] == pytest.approx(11.0)
    assert slow["cold_start_s"] == 2.0
    assert "direct" not in figures


def test_the_table_begins_with_the_gateway_and_says_which_ratios_hold(figures: dict[str, dict[str, float]]) -> None:
    lines = peers_table(figures, {"Slow": 20.0, "Lean": 0.5}, {"Slow": "1.2"}).splitlines()
    assert [line.split("  ")[0] for line in lines[2:]] == ["gateway", "Lean", "Slow 1.2"]
    assert lines[3].split()[-3:] == [">=", "0.5", "MISSED"]
    assert lines[4].split()[-3:] == [">=", "20", "kept"]


def test_who_was_not_measured_stands_below_the_table_of_the_page(figures: dict[str, dict[str, float]]) -> None:
    result = {"figures": figures, "accepted_ratio": {}, "versions": {}, "not_measured": {"Absent": "no\n node"}}
    block = peers_block("heading:", result, ["A note."])
    assert block.startswith("heading:\n\n```text\n")
    assert block.endswith("```\n\nNot measured: Absent (no node).\n\nA note.")
    page = document_peers(f"before\n{BEGIN}\nold\n{END}\nafter", block)
    assert page == f"before\n{BEGIN}\n{block}\n{END}\nafter"
    with pytest.raises(ValueError, match="no marks"):
        document_peers("a page without marks", block)
