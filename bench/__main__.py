"""`python -m bench`: the gateway against a direct call and a bare pass-through, in one run.

All contestants are up at once; short windows rotate over them, so that whatever else the machine does hits all alike.
With --peers other gateways take part in the same rounds. Figures are medians over the rounds. With two cores or more
the gateway has one to itself and the model API and the load generator share another.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from bench.contestants import gateway, passthrough
from bench.peers import PEERS, entries
from bench.peers_report import document_peers, peer_figures, peers_block
from bench.phases import PHASES, Cores
from bench.report import (
    FIGURES,
    FOREIGN_LOAD_TO_DISTRUST_RATIO,
    Window,
    document,
    figures_of,
    foreign_load,
    quiet_windows,
    table,
)
from bench.rounds import Entry, Plan, Rounds
from bench.tools import ROOT, BenchError, Tools, build_tools

ROUNDS, QUICK_ROUNDS = 9, 3
COLD_STARTS, QUICK_COLD_STARTS = 5, 2
PEER_COLD_STARTS, PEER_WINDOW_S = 3, 2.0
PEER_PHASES = ("one_in_flight", "sixteen_in_flight")
OURS = (Entry("pass-through", passthrough), Entry("gateway", gateway))
DISTRUST = "ratios and CPU per request hold better than rates and latencies, do not trust those"


def choose_cores() -> Cores:
    """Two of the cores we may use, or none where there is one or no taskset."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2 or shutil.which("taskset") is None:
        return Cores(None, None)
    return Cores(load=usable[0], gateway=usable[1])


def run(tools: Tools, work_dir: Path, plan: Plan, *, only: bool) -> dict[str, Any]:
    """Our own contestants, as one JSON-able report; `only`: raw windows of one phase, no figures."""
    cores = choose_cores()
    measured = Rounds(tools, cores, work_dir, plan, OURS).run()
    counted = quiet_windows(measured.windows)
    figures = {} if only else {name: figures_of(name, counted) for name in measured.names()}
    for name, took_s in measured.cold_start_s.items():
        figures.setdefault(name, {}).update(cold_start_s=median(took_s), pss_mb=measured.pss_mb[name])
    return {
        **about(tools, cores, plan, counted),
        "figures": figures,
        "budget": {figure.key: figure.budget for figure in FIGURES if figure.budget is not None},
        "windows": measured.windows,
    }


def run_peers(tools: Tools, work_dir: Path, plan: Plan) -> dict[str, Any]:
    """Our own contestants and the peers that can be had, as one JSON-able report."""
    others, absent = entries(lambda text: print(text, file=sys.stderr))
    cores = choose_cores()
    measured = Rounds(tools, cores, work_dir, plan, [*OURS, *others]).run()
    counted = quiet_windows(measured.windows)
    return {
        **about(tools, cores, plan, counted),
        "figures": peer_figures(counted, measured.cold_start_s, measured.pss_mb),
        "versions": {peer.name: peer.version for peer in PEERS if peer.version},
        "accepted_ratio": {peer.name: peer.accepted_ratio for peer in PEERS},
        "not_measured": absent | measured.not_measured,
        "windows": measured.windows,
    }


def about(tools: Tools, cores: Cores, plan: Plan, counted: Sequence[Window]) -> dict[str, Any]:
    """What every report begins with."""
    return {
        "schema_version": 1,
        "taken_at_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(tools, cores),
        "rounds": plan.rounds,
        "foreign_ratio": foreign_load(counted),
    }


def describe_machine(tools: Tools, cores: Cores) -> dict[str, Any]:
    """What the absolute figures depend on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "gateway_alone_on_a_core": cores.gateway is not None,
        "python": platform.python_version(),
        "tools": tools.language,
    }


def arguments() -> argparse.Namespace:
    """What was asked for; ends with code 2 where it makes no sense."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the gateway on this machine.")
    parser.add_argument("--quick", action="store_true", help="about a minute instead of about four")
    parser.add_argument("--rounds", type=int, help=f"rounds to run (default {ROUNDS}, quick {QUICK_ROUNDS})")
    parser.add_argument("--only", choices=[phase.name for phase in PHASES], help="one phase: raw windows, no table")
    parser.add_argument("--peers", action="store_true", help="other gateways in the same rounds (installs them first)")
    parser.add_argument("--out", type=Path, default=ROOT / "bench-results", help="folder for the JSON file")
    parser.add_argument("--document", action="store_true", help="write the table into docs/performance.md")
    options = parser.parse_args()
    if options.document and options.only:
        parser.error("--document needs all phases")
    if options.peers and options.only:
        parser.error("--peers has its own phases: leave --only out")
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: at least 1")
    return options


def plan_of(options: argparse.Namespace) -> Plan:
    """How much of what. Peers are slow: their windows are longer, so that a p99 stands on more than a few answers."""
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    starts = QUICK_COLD_STARTS if options.quick else COLD_STARTS
    phases = [phase for phase in PHASES if options.only is None or phase.name == options.only]
    if options.peers:
        phases = [replace(phase, seconds=PEER_WINDOW_S) for phase in PHASES if phase.name in PEER_PHASES]
        starts = min(starts, PEER_COLD_STARTS)
    return Plan(phases, rounds, starts, 0.6 if options.quick else 1.0)


def main() -> int:
    """Exit code 0 when measured, 1 when it could not be, 2 for wrong use; budgets do not change it."""
    options = arguments()
    plan = plan_of(options)
    try:
        with tempfile.TemporaryDirectory(prefix="router-bench-") as folder:
            tools = build_tools(Path(folder))
            if options.peers:
                result = run_peers(tools, Path(folder), plan)
            else:
                result = run(tools, Path(folder), plan, only=options.only is not None)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    out = options.out / f"{'peers' if options.peers else 'bench'}-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    out.write_text(json.dumps(result, indent=1))
    show(result, options)
    print(out)
    return 0


def show(result: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Print the table and, where asked, write it into the page."""
    machine = result["machine"]
    heading = (
        f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, "
        f"{result['taken_at_utc'][:10]}, medians of {result['rounds']} rounds:"
    )
    notes = []
    if machine["tools"] != "C":
        notes.append("No C compiler: load and model API ran in Python, and the times of deltas include theirs.")
    share = f"Other processes used {result['foreign_ratio']:.0%} of the gateway's core"
    if result["foreign_ratio"] > FOREIGN_LOAD_TO_DISTRUST_RATIO:
        notes.append(f"{share}: {DISTRUST}.")
    elif options.peers:
        notes.append(f"{share} (median of all windows).")
    page = ROOT / "docs" / "performance.md"
    if options.peers:
        block = peers_block(heading, result, notes)
        print(block)
        if options.document:
            page.write_text(document_peers(page.read_text(), block))
        return
    if options.only is None:
        print(heading)
        print(table(result["figures"]))
    for note in notes:
        print(note)
    if options.document:
        page.write_text(document(page.read_text(), heading, result["figures"]))


if __name__ == "__main__":
    sys.exit(main())
