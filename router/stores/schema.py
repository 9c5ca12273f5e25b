"""The tables as the newest migration leaves them; what reads and writes are built from.

Money is integer nano-dollars (`_nanousd`), time integer microseconds since 1970 UTC (`_at_us`) or a duration (`_us`),
so both sort, sum and group the same on every database. JSON is kept as text.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Float, Integer, MetaData, SmallInteger, Table, Text

metadata = MetaData()


def _attempt_key() -> tuple[Column[str], Column[int]]:
    return Column("request_id", Text, primary_key=True), Column("number", Integer, primary_key=True)


def _made_to() -> tuple[Column[Any], ...]:
    """For whom an attempt was made, to whom, and when."""
    texts = ("tenant", "candidate", "tier", "provider", "model")
    return (*(Column(name, Text, nullable=False) for name in texts), Column("opened_at_us", BigInteger, nullable=False))


# How an attempt came into the books: its request was settled, or crash recovery booked what a dead gateway had open.
SETTLED, LOST = "settled", "lost"

instance = Table(
    "instance",
    metadata,
    Column("instance", Text, primary_key=True),
    Column("started_at_us", BigInteger, nullable=False),
)

# What is in somebody's hands now. The first attempt of a request carries its reservation, `hold_nanousd`. A row goes
# when its request is booked, so the table stays as small as the traffic in flight.
open_attempt = Table(
    "open_attempt",
    metadata,
    *_attempt_key(),
    Column("instance", Text, nullable=False),
    *_made_to(),
    Column("expires_at_us", BigInteger),
    Column("estimate_input_tokens", BigInteger, nullable=False),
    Column("reserve_nanousd", BigInteger, nullable=False),
    Column("hold_nanousd", BigInteger, nullable=False),
)

# The books: only ever added to, but for what recovery booked and the real settlement, coming late, replaces.
attempt = Table(
    "attempt",
    metadata,
    *_attempt_key(),
    Column("state", Text, nullable=False),
    *_made_to(),
    Column("outcome", Text, nullable=False),
    Column("input_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("cached_input_tokens", BigInteger),
    Column("cache_write_tokens", BigInteger),
    Column("reasoning_tokens", BigInteger),
    Column("usage_estimated", SmallInteger, nullable=False),
    Column("usage_flags", Text, nullable=False),
    Column("amount_nanousd", BigInteger, nullable=False),
    Column("price_version", Text, nullable=False),
    Column("work_gpu_ns", BigInteger),
    Column("flags", Text, nullable=False),
    Column("duration_us", BigInteger),
    Column("first_token_us", BigInteger),
    Column("detail", Text),
    Column("is_last", SmallInteger, nullable=False),
    # Hardware in whose hours the charge is booked, and whether it stands there already (see `posting`).
    Column("asset", Text),
    Column("posted", SmallInteger, nullable=False),
)

request = Table(
    "request",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("schema_version", Integer, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("received_at_us", BigInteger, nullable=False),
    Column("requested_model", Text, nullable=False),
    Column("stream", SmallInteger, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("reason", Text),
    Column("session", Text),
    Column("cost_nanousd", BigInteger, nullable=False),
    Column("duration_us", BigInteger, nullable=False),
    Column("first_token_us", BigInteger),
    Column("exploration_probability", Float, nullable=False),
    Column("prompt_sha256", Text, nullable=False),
    Column("prompt_text", Text),
    Column("policy_version", Text),
    Column("inputs_hash", Text),
    Column("world_hash", Text),
    Column("features", Text),
    Column("score", Text),
    Column("decision", Text),
    Column("usage", Text),
    Column("moment", Text),
    Column("resolved", SmallInteger, nullable=False),
)

world = Table(
    "world",
    metadata,
    Column("world_hash", Text, primary_key=True),
    Column("body", Text, nullable=False),
)

feedback = Table(
    "feedback",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("tenant", Text, primary_key=True),
    Column("score", Float, nullable=False),
    Column("comment", Text),
    Column("received_at_us", BigInteger, nullable=False),
)

judgement = Table(
    "judgement",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("tier", Text, primary_key=True),
    Column("provenance", Text, primary_key=True),
    Column("judge", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("quality", Float, nullable=False),
    Column("action_probability", Float, nullable=False),
    Column("label_probability", Float, nullable=False),
    Column("output_tokens", BigInteger),
    Column("judged_at_us", BigInteger, nullable=False),
)

# Hardware that is paid for by the hour. `home` is the installation that answers for it; before `closed_until_us` every
# period is closed.
asset = Table(
    "asset",
    metadata,
    Column("asset", Text, primary_key=True),
    Column("home", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("on_mode", Text, nullable=False),
    Column("first_on_us", BigInteger, nullable=False),
    Column("closed_until_us", BigInteger, nullable=False),
    # The engine on it that several gateways may use; none: it is one gateway's alone.
    Column("shared_engine", Text),
)

# Decimals and cost lines (JSON: USD an hour by name) are text, so that no digit is lost.
asset_rate = Table(
    "asset_rate",
    metadata,
    Column("asset", Text, primary_key=True),
    Column("from_us", BigInteger, primary_key=True),
    Column("usd_per_hour", Text, nullable=False),
    Column("practical_capacity_ratio", Text, nullable=False),
    Column("cost_lines", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("power_kw", Text),
    Column("wall_usd_per_kwh", Text),
)

# Without `to_us` it is on until further notice, whether or not a gateway runs.
asset_on = Table(
    "asset_on",
    metadata,
    Column("asset", Text, primary_key=True),
    Column("from_us", BigInteger, primary_key=True),
    Column("to_us", BigInteger),
)

# What was measured of the energy of an asset's cards; the last stretch of a card grows. `boot` names the start of the
# machine that `counter_mj` has run in.
asset_energy = Table(
    "asset_energy",
    metadata,
    Column("asset", Text, primary_key=True),
    Column("card", Text, primary_key=True),
    Column("from_us", BigInteger, primary_key=True),
    Column("to_us", BigInteger, nullable=False),
    Column("energy_mj", BigInteger, nullable=False),
    Column("basis", Text, nullable=False),
    Column("counter_mj", BigInteger),
    Column("cards", Integer, nullable=False),
    Column("boot", Text, nullable=False),
)

# Which part of which attempt's charge stands in which period; only ever added to.
posting = Table(
    "posting",
    metadata,
    *_attempt_key(),
    Column("part", Integer, primary_key=True),
    Column("asset", Text, nullable=False),
    Column("period_us", BigInteger, nullable=False),
    Column("adjusts_us", BigInteger),
    Column("done_us", BigInteger, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("work_gpu_ns", BigInteger, nullable=False),
    Column("amount_nanousd", BigInteger, nullable=False),
    Column("price_version", Text, nullable=False),
)

# Closed periods; an open one has no row yet. A row is written once and never changed.
period = Table(
    "period",
    metadata,
    Column("asset", Text, primary_key=True),
    Column("start_us", BigInteger, primary_key=True),
    Column("end_us", BigInteger, nullable=False),
    Column("on_us", BigInteger, nullable=False),
    Column("usd_per_hour", Text, nullable=False),
    Column("rate_version", Text, nullable=False),
    Column("cost_lines", Text, nullable=False),
    Column("invoice_nanousd", BigInteger, nullable=False),
    Column("absorbed_nanousd", BigInteger, nullable=False),
    Column("unabsorbed_nanousd", BigInteger, nullable=False),
    Column("work_gpu_ns", BigInteger, nullable=False),
    Column("closed_at_us", BigInteger, nullable=False),
    # Where energy is a line of its own: what was measured of it, what is modelled, and how it is known.
    Column("energy_measured_mj", BigInteger),
    Column("energy_modelled_mj", BigInteger),
    Column("energy_nanousd", BigInteger),
    Column("energy_basis", Text),
)
