"""The dials of a trained model: nu for every preset, on its own calibration sample at the prices in force. Pure.

Only tiers that can answer and have a price are chosen from; "always premium" is always the best of those. The local
tier counts at its marginal price, which is what the decision compares: nothing, or the energy of owned hardware.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from classifier.calibrate import CalibrationSample, QualityDial, TokenPrices, nu_for_targets
from local_llm.workunits import work_gpu_s
from router.core.decision import Candidate, PolicyConfig
from router.core.snapshot import AssetRate, PriceRow
from router.core.vocabulary import TIER_ORDER, Tier

_TYPICAL_INPUT_TOKENS, _TYPICAL_OUTPUT_TOKENS = 500, 300
_K = 1_000


def marginal_prices(
    candidates: Sequence[Candidate], rows: Mapping[str, PriceRow], assets: Mapping[str, AssetRate]
) -> dict[str, TokenPrices]:
    """What a token costs, by model (`tier/model`) and for each tier that of its cheapest one (`tier`).

    A model that several engines serve costs what it costs on the cheapest of them.
    """
    found: dict[str, TokenPrices] = {}
    for candidate in candidates:
        price = _price_of(candidate, rows, assets)
        if price is None:
            continue
        tier = candidate.tier.value
        for name in (f"{tier}/{candidate.model}", tier):
            if name not in found or _typical_usd(price) < _typical_usd(found[name]):
                found[name] = price
    return found


def _price_of(
    candidate: Candidate, rows: Mapping[str, PriceRow], assets: Mapping[str, AssetRate]
) -> TokenPrices | None:
    if candidate.unavailable is not None:
        return None
    if candidate.tier is Tier.LOCAL:
        return _energy(assets.get(candidate.name))
    row = rows.get(candidate.name)
    if row is None:
        return None
    tier = row.tiers[0]
    return TokenPrices(float(tier.input_usd_per_mtok), float(tier.output_usd_per_mtok), float(row.request_usd))


def _energy(asset: AssetRate | None) -> TokenPrices:
    """Per token what `policy` counts as the marginal cost of an engine with room, taken at a usual length."""
    if asset is None or asset.coefficients is None or not asset.energy_usd_per_gpu_s:
        return TokenPrices(0.0, 0.0)
    read_s = work_gpu_s(asset.coefficients, prompt_tokens=_K, output_tokens=0)
    both_s = work_gpu_s(asset.coefficients, prompt_tokens=_K, output_tokens=_K)
    usd_per_mtok = float(asset.energy_usd_per_gpu_s) * 1e6 / _K
    return TokenPrices(read_s * usd_per_mtok, (both_s - read_s) * usd_per_mtok)


def _typical_usd(price: TokenPrices) -> float:
    return price.usd(_TYPICAL_INPUT_TOKENS, _TYPICAL_OUTPUT_TOKENS)


def reference_of(sample: CalibrationSample, prices: Mapping[str, TokenPrices]) -> str | None:
    """The tier against which quality is kept: the highest that can answer, of several models of it the best.

    `None` where the sample knows none.
    """
    known = [(i, name) for i, name in enumerate(sample.tiers) if name in prices]
    if not known or not sample.rows:
        return None

    def rank(column: tuple[int, str]) -> tuple[int, float]:
        i, name = column
        tier = name.partition("/")[0]
        order = next((order for known_tier, order in TIER_ORDER.items() if known_tier == tier), -1)
        return order, sum(row.quality[i] for row in sample.rows)

    return max(known, key=rank)[1]


def set_dials(
    policies: Mapping[str, PolicyConfig],
    sample: CalibrationSample | None,
    prices: Mapping[str, TokenPrices],
    *,
    confidence_ratio: float,
) -> tuple[dict[str, PolicyConfig], dict[str, QualityDial]]:
    """`policies` (by preset) with their `nu_usd`, and the dial of each preset for people.

    Without a sample, or without a tier that both it and the config know, the policies stay as they are (the target
    serves as the floor) and there is no dial. A target that no nu is shown to reach gets the safest one tried.
    """
    reference = reference_of(sample, prices) if sample is not None else None
    if sample is None or reference is None:
        return dict(policies), {}
    targets = sorted({cfg.quality_target_ratio for cfg in policies.values() if cfg.quality_target_ratio > 0.0})
    found = nu_for_targets(
        sample, prices, target_ratios=targets, confidence_ratio=confidence_ratio, reference=reference
    )
    by_target = dict(zip(targets, found, strict=True))
    dials = {preset: by_target[c.quality_target_ratio] for preset, c in policies.items() if c.quality_target_ratio}
    return {
        preset: replace(cfg, nu_usd=dials[preset].nu_usd if preset in dials else 0.0)
        for preset, cfg in policies.items()
    }, dials


def premium_share(
    sample: CalibrationSample | None, prices: Mapping[str, TokenPrices], nu_usd: float | None
) -> float | None:
    """Share of the sample's requests that `nu_usd` sends to the premium tier, 0..1; `None` where that is not known."""
    if sample is None or not sample.rows or not nu_usd:
        return None
    known = [(i, name) for i, name in enumerate(sample.tiers) if name in prices]
    premium = {i for i, name in known if name.partition("/")[0] == Tier.PREMIUM.value}
    if not premium:
        return None
    hits = 0
    for row in sample.rows:
        best, least = -1, 0.0
        for i, name in known:
            value = prices[name].usd(row.input_tokens, row.output_tokens[i]) - nu_usd * row.p[i]
            if best < 0 or value < least:
                best, least = i, value
        hits += best in premium
    return hits / len(sample.rows)
