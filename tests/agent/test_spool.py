"""Windows that wait on disk for the database: whole, in order, bounded, and never a reason to stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.spool import Spool
from tests.agent.records import T0, window


def test_what_is_put_comes_back_whole_and_in_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    first, second = [window(T0), window(T0 + 60, coverage=0.0)], [window(T0 + 120)]
    assert spool.put(first)
    assert spool.put(second)
    again = Spool(tmp_path / "spool")  # another process, after a crash
    assert [again.read(batch) for batch in again.batches()] == [first, second]
    again.put([window(T0 + 180)])
    assert len(again.batches()) == 3


def test_it_is_bounded_and_what_does_not_fit_is_counted(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", limit_bytes=6000)
    kept = [spool.put([window(T0 + 60 * i)]) for i in range(20)]
    assert kept[0]
    assert not kept[-1]
    assert spool.dropped == kept.count(False)
    assert spool.size() <= 6000
    spool.remove(spool.batches()[0])
    assert spool.put([window(T0)])


def test_a_disk_that_refuses_is_counted_and_raises_nothing(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file where the folder should be")
    spool = Spool(tmp_path / "spool")
    assert spool.put([window(T0), window(T0 + 60)]) is False
    assert spool.dropped == 2


@pytest.mark.parametrize(
    "text",
    ["", "{", "5", "[1]", "[{}]", "null", '[{"sketches": "", "gauges": []}]', '[{"sketches": "!", "gauges": {}}]',
     '[{"sketches": 5}]'],
)  # fmt: skip
def test_a_damaged_batch_is_said_to_be_one_and_set_aside(text: str, tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.put([window(T0)])
    (batch,) = spool.batches()
    batch.write_text(text)
    with pytest.raises(ValueError, match=r".+"):
        spool.read(batch)
    spool.set_aside(batch)
    assert spool.batches() == []
    assert batch.with_suffix(".damaged").read_text() == text


def test_a_half_written_batch_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "000000000001.partial").write_text(json.dumps([])[:1])
    spool = Spool(tmp_path)
    assert spool.batches() == []
    assert spool.size() == 0
