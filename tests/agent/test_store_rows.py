"""What the rows say of themselves is what the tables are: names, kinds, and what may be unknown."""

from __future__ import annotations

from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest
import sqlalchemy as sa

from agent.store import rows, schema

TABLES = {
    rows.EndpointRow: schema.endpoints,
    rows.SourceRow: schema.sources,
    rows.FindingRow: schema.findings,
    rows.MuteRow: schema.mutes,
    rows.EventRow: schema.events,
    rows.FlightRow: schema.flights,
    rows.CalibrationRow: schema.calibrations,
    rows.RecommendationRow: schema.recommendations,
    rows.ApprovalRow: schema.approvals,
    rows.TokenRow: schema.tokens,
    rows.ChangeRow: schema.changes,
    rows.JournalRow: schema.journal,
    rows.LedgerRow: schema.ledger,
    rows.MessageRow: schema.outbox,
    rows.TuneRow: schema.tunes,
    rows.TrialRow: schema.trials,
    rows.ReportRow: schema.reports,
    rows.PriceRow: schema.prices,
    rows.BillRow: schema.bills,
    rows.SavingRow: schema.savings,
    rows.LeaseRow: schema.leases,
    rows.ControlRow: schema.control,
    rows.AuditRow: schema.audit,
}
KINDS: dict[type, tuple[type, ...]] = {
    sa.Text: (str,),
    sa.Double: (float,),
    sa.Boolean: (bool,),
    sa.Integer: (int,),
    sa.BigInteger: (int,),
    sa.JSON: (dict,),
    sa.LargeBinary: (bytes,),
}


def test_every_kind_of_row_is_held_to_its_table() -> None:
    told = {value for name, value in vars(rows).items() if name.endswith("Row")}
    assert told == set(TABLES)


@pytest.mark.parametrize("kind", TABLES, ids=lambda kind: kind.__name__)
def test_a_row_is_what_its_table_says(kind: type[Any]) -> None:
    columns, hints = TABLES[kind].columns, get_type_hints(kind)
    assert set(hints) == {column.name for column in columns}
    for column in columns:
        hint = hints[column.name]
        if hint is Any:
            continue
        parts = get_args(hint) if NoneType in get_args(hint) else (hint,)
        assert (NoneType in parts) is bool(column.nullable), column.name
        (plain,) = (part for part in parts if part is not NoneType)
        assert getattr(plain, "__origin__", plain) in KINDS[type(column.type)], column.name
