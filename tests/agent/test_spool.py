"""Windows that wait on disk for the database: whole, in order, bounded, and never a reason to stop."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.spool import Batch, Spool
from agent.store.windows import Entry
from collectors.window import Range, Window
from tests.agent import records
from tests.agent.records import T0


def window(start: float, **fields: Any) -> Entry:
    made: Window = records.window(start, **fields)
    return Entry(replace(made, quantiles={"e2e_s": {0.95: Range(0.8, 1.2)}}, observed={"requests": 0.5}), 0.06)


def test_what_is_put_comes_back_whole_and_in_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    first, second = [window(T0), window(T0 + 60, coverage=0.0)], [window(T0 + 120)]
    assert spool.put(first)
    assert spool.put(second)
    again = Spool(tmp_path / "spool")  # another process, after a crash
    assert [again.read(batch) for batch in again.batches()] == [Batch(first, 0), Batch(second, 0)]
    again.put([window(T0 + 180)])
    assert len(again.batches()) == 3


def test_it_is_bounded(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", limit_bytes=8000)
    kept = [spool.put([window(T0 + 60 * i)]) for i in range(20)]
    assert kept[0]
    assert not kept[-1]
    assert spool.size() <= 8000
    spool.remove(spool.batches()[0])
    assert spool.put([window(T0)])


def test_a_disk_that_refuses_raises_nothing(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file where the folder should be")
    spool = Spool(tmp_path / "spool")
    assert spool.put([window(T0), window(T0 + 60)]) is False


def _is_one(text: str, tmp_path: Path) -> tuple[Spool, Path]:
    spool = Spool(tmp_path)
    assert spool.put([window(T0)])
    (batch,) = spool.batches()
    batch.write_text(text)
    return spool, batch


@pytest.mark.parametrize("text", ["", "{", "5", "null", "\x00", "[" * 100_000, '{"windows": []}'])
def test_a_file_that_is_no_batch_is_said_to_be_none_and_set_aside(text: str, tmp_path: Path) -> None:
    spool, batch = _is_one(text, tmp_path)
    with pytest.raises(ValueError, match=r".+"):
        spool.read(batch)
    spool.set_aside(batch)
    assert spool.batches() == []
    assert batch.with_suffix(".damaged").read_text() == text


@pytest.mark.parametrize(
    "change",
    [
        {"start": "now"}, {"start": None}, {"start": float("nan")}, {"start": [1]}, {"duration_s": 0}, {"coverage": 7},
        {"targets": 10**400}, {"targets": 1.5}, {"counts": {"requests": float("inf")}}, {"counts": []}, {"facts": ["model"]},
        {"facts": {"model": 1}}, {"sketches": "!"}, {"sketches": 5}, {"gauges": {"running": [1]}}, {"gauges": []}, {"endpoint": None},
        {"quantiles": {"e2e_s": {"much": [1, 2]}}}, {"cost_usd": "1"}, {"other": 1},
    ],
)  # fmt: skip
def test_a_damaged_window_costs_only_itself(change: dict[str, Any], tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    assert spool.put([window(T0), window(T0 + 60)])
    (batch,) = spool.batches()
    first, second = json.loads(batch.read_text())
    batch.write_text(json.dumps([first | change, second]))
    assert spool.read(batch) == Batch([window(T0 + 60)], 1)
    batch.write_text(json.dumps([7, None, [], {}, second]))
    assert spool.read(batch) == Batch([window(T0 + 60)], 4)


def test_a_folder_in_a_batchs_place_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "000000000001.json").mkdir()
    spool = Spool(tmp_path)
    assert spool.put([window(T0)])
    first, second = spool.batches()
    with pytest.raises(ValueError, match="cannot be read"):
        spool.read(first)
    spool.set_aside(first)
    assert spool.batches() == [second]


def test_what_can_be_neither_read_nor_moved_is_passed_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)
    assert spool.put([window(T0)])
    assert spool.put([window(T0 + 60)])
    first, second = spool.batches()

    def refuse(*_: object) -> None:
        raise PermissionError(13, "not yours")

    monkeypatch.setattr(os, "rename", refuse)
    monkeypatch.setattr(os, "unlink", refuse)
    spool.set_aside(first)
    spool.remove(second)
    assert spool.batches() == []


def test_a_half_written_batch_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "000000000001.partial").write_text(json.dumps([])[:1])
    spool = Spool(tmp_path)
    assert spool.batches() == []
    assert spool.size() == 0
