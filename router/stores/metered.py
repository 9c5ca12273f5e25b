"""What was measured of the energy of hardware, as the books keep it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, and_, func, insert, select, update

from router.core.energy import Basis, CardLook, EnergyBasis, EnergyUse, Stretch
from router.stores.schema import asset_energy

_E = asset_energy.c


def keep(connection: Connection, name: str, stretches: Sequence[Stretch], boot: str) -> None:
    """Add `stretches`; one that is known has grown, or is told again."""
    for one in stretches:
        mine = and_(_E.asset == name, _E.card == one.card, _E.from_us == one.from_us)
        grown = {"to_us": one.to_us, "energy_mj": one.energy_mj, "counter_mj": one.counter_mj}
        if connection.scalar(select(func.count()).where(mine)):
            connection.execute(update(asset_energy).where(mine, _E.to_us < one.to_us).values(**grown))
        else:
            first = {"asset": name, "card": one.card, "from_us": one.from_us, "basis": one.basis.value}
            connection.execute(insert(asset_energy).values(**first, **grown, cards=one.cards, boot=boot))


def stretches_of(connection: Connection, name: str, since_us: int) -> list[Stretch]:
    """What was measured of the asset, as far as it reaches past `since_us`."""
    query = select(asset_energy).where(_E.asset == name, _E.to_us > since_us).order_by(_E.card, _E.from_us)
    return [
        Stretch(row.card, row.from_us, row.to_us, row.energy_mj, Basis(row.basis), row.counter_mj, row.cards)
        for row in connection.execute(query)
    ]


def last_looks(connection: Connection, name: str, boot: str) -> list[CardLook]:
    """What each card's counter said when it was last looked at, in this life of the machine."""
    latest = (
        select(_E.card, func.max(_E.to_us).label("to_us"))
        .where(_E.asset == name, _E.boot == boot, _E.counter_mj.is_not(None))
        .group_by(_E.card)
        .subquery()
    )
    query = (
        select(_E.card, _E.to_us, func.max(_E.counter_mj))
        .join(latest, and_(_E.card == latest.c.card, _E.to_us == latest.c.to_us))
        .where(_E.asset == name, _E.boot == boot)
        .group_by(_E.card, _E.to_us)
    )
    return [CardLook(card, at_us, counter_mj, None) for card, at_us, counter_mj in connection.execute(query)]


def columns_of(energy: EnergyUse | None) -> dict[str, Any]:
    """A period's energy as its row has it."""
    return {
        "energy_measured_mj": energy.measured_mj if energy is not None else None,
        "energy_modelled_mj": energy.modelled_mj if energy is not None else None,
        "energy_nanousd": energy.nanousd if energy is not None else None,
        "energy_basis": energy.basis.value if energy is not None else None,
    }


def energy_of(row: Any) -> EnergyUse | None:
    """Inverse of `columns_of`."""
    if row.energy_basis is None:
        return None
    return EnergyUse(row.energy_measured_mj, row.energy_modelled_mj, EnergyBasis(row.energy_basis), row.energy_nanousd)
