"""Request traces: what a good file says, and where a bad one is wrong."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.simulate.records import Records
from collectors.traces import FORMATS, BadTrace, read, read_trace, write_trace
from collectors.traffic.worker import COLUMNS
from collectors.workload import Workload

DATA = Path(__file__).parents[2] / "../shared/data/traces"
OWN = "arrival_s,prompt_tokens,output_tokens\n0,100,10\n0.5,200,20\n0.5,300,0\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to(content: str | bytes, name: str = "trace.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return to


def shared(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not beside the project (../shared/data/traces)")
    return DATA / name


def error(path: Path, format: str | None = None) -> BadTrace:  # noqa: A002
    with pytest.raises(BadTrace) as raised:
        read_trace(path, format)
    assert str(path) in str(raised.value)
    assert "Arrow" not in str(raised.value)
    return raised.value


# -- what `flyball simulate --save` wrote -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_saved_requests_are_replayed_with_the_lengths_that_the_server_counted(suffix: str, tmp_path: Path) -> None:
    """A row as each one ended: not in order of arrival, with failures, and with sessions of some."""
    path = tmp_path / f"saved{suffix}"
    told = [
        {"due_s": 0.5, "prompt_tokens": 90, "output_tokens": 7, "cached_tokens": 32, "session": 4, "error": None},
        {"due_s": 0.1, "prompt_tokens": 50, "output_tokens": 20, "cached_tokens": None, "session": 4, "error": None},
        {
            "due_s": 0.2,
            "prompt_tokens": None,
            "output_tokens": 0,
            "cached_tokens": None,
            "session": 5,
            "error": "timeout",
        },
        {"due_s": 0.3, "prompt_tokens": None, "output_tokens": 9, "cached_tokens": None, "session": 5, "error": None},
        {"due_s": 0.4, "prompt_tokens": 40, "output_tokens": 8, "cached_tokens": 40, "session": None, "error": None},
    ]
    with Records(path) as records:
        records.add([tuple({"due_s": 0.0, **row}.get(name) for name in COLUMNS) for row in told])
    notes: list[str] = []
    found = read(path, notes=notes)
    work = found.workload
    assert (found.format, found.unread) == ("simulate", ())
    assert work.arrival_s.tolist() == [0.1, 0.4, 0.5]
    assert (work.prompt_tokens.tolist(), work.output_tokens.tolist()) == ([50, 40, 90], [20, 8, 7])
    assert work.prefix_tokens.tolist() == [0, 39, 32]
    assert work.session is not None
    assert work.session[0] == work.session[2] != work.session[1]
    assert notes == [
        "left out 1 of 5 rows: they failed",
        "left out 1 of 5 rows: the server did not tell their prompt_tokens",
    ]


# -- Flyball's own columns ----------------------------------------------------------------------------------------------


def test_own_columns(write: Write) -> None:
    notes: list[str] = []
    work = read_trace(write(OWN), notes=notes)
    assert work.arrival_s.tolist() == [0.0, 0.5, 0.5]
    assert work.prompt_tokens.tolist() == [100, 200, 300]
    assert work.output_tokens.tolist() == [10, 20, 0]
    assert work.prefix_tokens.tolist() == [0, 0, 0]
    assert work.session is None
    assert notes == []


@pytest.mark.parametrize(
    "content",
    [
        OWN.replace("\n", "\r\n"),
        "\ufeff" + OWN,
        "\n" + OWN.replace("\n", "\n\n"),
        OWN.replace(",", " , "),
        OWN.rstrip("\n"),
        '"output_tokens","arrival_s","prompt_tokens"\n10,0,100\n"20",0.5,2e2\n0.0,5e-1,300\n',
    ],
    ids=["crlf", "byte-order mark", "empty lines", "spaces", "no last newline", "another order, quoted"],
)
def test_spellings_of_the_same_csv(write: Write, content: str) -> None:
    work = read_trace(write(content))
    assert work.arrival_s.tolist() == [0.0, 0.5, 0.5]
    assert work.prompt_tokens.tolist() == [100, 200, 300]
    assert work.output_tokens.tolist() == [10, 20, 0]


def test_sessions_are_any_names_in_order_of_appearance(write: Write) -> None:
    rows = [("b", 0), ("a", 0), ("", 0), ("b", 50), ("", 0), ("7", 0)]
    text = "arrival_s,prompt_tokens,output_tokens,prefix_tokens,session\n"
    work = read_trace(write(text + "".join(f"{i},100,1,{p},{s}\n" for i, (s, p) in enumerate(rows))))
    assert work.session is not None
    assert work.session.tolist() == [0, 1, 3, 0, 4, 2]
    assert work.prefix_tokens.tolist() == [0, 0, 0, 50, 0, 0]


@pytest.mark.parametrize(
    "session",
    [
        pa.array([9, None, 9, 4]),
        pa.array([9.0, float("nan"), 9.0, 4.0]),
        pa.array(["x", None, "x", "y"]),
        pa.array(["x", None, "x", "y"]).dictionary_encode(),
        pa.chunked_array([pa.array(["x", None]).dictionary_encode(), pa.array(["x", "y"]).dictionary_encode()]),
    ],
    ids=["integers", "floats with gaps", "text", "dictionary", "two dictionaries"],
)
def test_sessions_in_parquet(tmp_path: Path, session: pa.Array) -> None:
    columns = {"arrival_s": [0.0, 1.0, 2.0, 3.0], "prompt_tokens": [5] * 4, "output_tokens": [1] * 4}
    pq.write_table(pa.table({**columns, "session": session}), tmp_path / "t.parquet")
    work = read_trace(tmp_path / "t.parquet")
    assert work.session is not None
    assert work.session.tolist() == [0, 2, 0, 1]


def test_a_prompt_that_is_cached_whole_is_counted(write: Write) -> None:
    notes: list[str] = []
    text = "arrival_s,prompt_tokens,output_tokens,prefix_tokens,user\n0,10,1,10,eve\n1,10,1,4,eve\n"
    work = read_trace(write(text), notes=notes)
    assert work.prefix_tokens.tolist() == [9, 4]
    assert notes == [
        "1 prompts are cached whole: their last token is computed all the same",
        "columns that are not used: user",
    ]


def test_unix_times_count_from_the_first(write: Write) -> None:
    notes: list[str] = []
    work = read_trace(write("arrival_s,prompt_tokens,output_tokens\n1700000000.5,1,1\n1700000002.5,1,1\n"), notes=notes)
    assert work.arrival_s.tolist() == [0.0, 2.0]
    assert "Unix time" in notes[0]
    late = read_trace(write("arrival_s,prompt_tokens,output_tokens\n86400,1,1\n"))
    assert late.arrival_s.tolist() == [86400.0]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@given(data=st.data(), n=st.integers(1, 40), sessions=st.booleans())
def test_what_is_written_is_read_again(suffix: str, data: st.DataObject, n: int, sessions: bool) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    prompt = rng.integers(1, 10_000, n)
    work = Workload(
        np.cumsum(rng.exponential(1.0, n)),
        prompt,
        rng.integers(0, 1000, n),
        rng.integers(0, prompt),
        np.unique(rng.integers(0, 5, n), return_inverse=True)[1].astype(np.int64) if sessions else None,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"t.{suffix}"
        write_trace(work, path)
        got = read_trace(path)
    for name in ("arrival_s", "prompt_tokens", "output_tokens", "prefix_tokens"):
        assert np.array_equal(getattr(got, name), getattr(work, name)), name
        assert getattr(got, name).flags.writeable, "the engine is compiled for arrays that can be written to"
    if work.session is None:
        assert got.session is None
    else:
        assert got.session is not None  # the same requests together, under other numbers
        assert np.array_equal(got.session[:, None] == got.session, work.session[:, None] == work.session)


# -- bad files ----------------------------------------------------------------------------------------------------------

HEAD = "arrival_s,prompt_tokens,output_tokens,prefix_tokens\n"


@pytest.mark.parametrize(
    ("content", "where", "column", "says"),
    [
        ("", "", "", "is empty"),
        ("\n\n", "", "", "is empty"),
        (HEAD, "", "", "has no requests"),
        (HEAD + "\n\n", "", "", "has no requests"),
        ("0,100,10,0\n1,100,10,0\n", "1", "", "has no header"),
        ("arrival_s,prompt_tokens,prompt_tokens\n0,1,1\n", "1", "'prompt_tokens'", "two columns"),
        ("arrival_s,prompt_token,output_tokens\n0,1,1\n", "", "", "Rename 'prompt_token'"),
        ("arrival_s,prompt_tokens\n0,1\n", "", "", "has no column 'output_tokens'"),
        ("arrival_s;prompt_tokens;output_tokens\n0;1;1\n", "", "", "has no column"),
        ("a,b,c\n0,1,1\n", "", "", "The flyball format has arrival_s"),
        (HEAD + "0,1,1,0\n\n5,1,1,0\n4,1,1,0\n", "5", "arrival_s", "is 4, earlier than 5 in the row before it. Sort"),
        (HEAD + "0,1,1,0\n-1,1,1,0\n", "3", "arrival_s", "is -1"),
        (HEAD + "nan,1,1,0\n", "2", "arrival_s", "is nan"),
        (HEAD + "0,1,1,0\ninf,1,1,0\n", "3", "arrival_s", "is inf"),
        (HEAD + ",1,1,0\n", "2", "arrival_s", "is missing"),
        (HEAD + "soon,1,1,0\n", "2", "arrival_s", "is 'soon'"),
        (HEAD + "0,0,1,0\n", "2", "prompt_tokens", "is 0. Write 1 or more"),
        (HEAD + "0,1,1,0\n0,-5,1,0\n", "3", "prompt_tokens", "is -5"),
        (HEAD + "0,1.5,1,0\n", "2", "prompt_tokens", "is 1.5. Tokens are whole"),
        (HEAD + "0,1e300,1,0\n", "2", "prompt_tokens", "is 1e+300"),
        (HEAD + "0,1,-1,0\n", "2", "output_tokens", "is -1"),
        (HEAD + "0,1,,0\n", "2", "output_tokens", "is missing"),
        (HEAD + "0,1,1,2\n", "2", "prefix_tokens", "is 2, beyond the prompt"),
        (HEAD + "0,1,1,0\n0,1,1\n", "3", "", "has 3 cells, the header has 4"),
        (HEAD + "0,1,1,0\n0,1,1,0,9\n", "3", "", "has 5 cells"),
        (HEAD.encode() + b"0,1,1,0\n0,\xff,1,0\n", "3", "", "is not UTF-8"),
        (b"\xff\xfe" + HEAD.encode("utf-16-le"), "", "", "is UTF-16"),
        (b"\x1f\x8b\x08\x00rest", "", "", "is compressed. Unpack"),
        ("x" * 200_000, "1", "", "is no CSV"),
    ],
)
def test_bad_csv_says_where(write: Write, content: str | bytes, where: str, column: str, says: str) -> None:
    found = error(write(content))
    assert (found.where, found.column) == (where, column), str(found)
    assert says in str(found)


def test_bad_parquet_says_where(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_text(OWN)
    assert "is no readable Parquet file" in str(error(path))
    good = {"arrival_s": [0.0, 1.0, 2.0], "prompt_tokens": [1, 1, 1], "output_tokens": [1, 1, 1]}
    for name, values, where, says in (
        ("prompt_tokens", [1, 0, 1], "row 2", "is 0"),
        ("prompt_tokens", [1, None, 1], "row 2", "is missing"),
        ("arrival_s", [0.0, 2.0, 1.0], "row 3", "Sort the rows"),
        ("arrival_s", ["a", "b", "c"], "", "holds string. Store numbers"),
        ("session", [[1], [2], [3]], "", "holds list"),
    ):
        pq.write_table(pa.table({**good, name: values}), path)
        found = error(path)
        assert (found.where, found.column) == (where, name)
        assert says in str(found)
    pq.write_table(
        pa.table([[0.0], [1.0], [1], [1]], ["arrival_s", "arrival_s", "prompt_tokens", "output_tokens"]), path
    )
    assert "two columns" in str(error(path))
    path.write_bytes(path.read_bytes()[:-20])
    assert "is no readable Parquet file" in str(error(path))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    assert "cannot be read" in str(error(tmp_path / "none.csv"))
    assert "cannot be read" in str(error(tmp_path))


def test_a_format_by_a_wrong_name(write: Write) -> None:
    assert f"Known formats: {', '.join(FORMATS)}" in str(error(write(OWN), "sharegpt"))
    assert "has no column 'TIMESTAMP'" in str(error(write(OWN), "azure-2023"))
    assert "The azure format has" in str(error(write(OWN), "azure"))


@given(
    at=st.integers(0, len(OWN) - 1),
    length=st.integers(0, 5),
    put=st.binary(max_size=5) | st.sampled_from([b",", b"\n", b'"', b"\x00", b"-", b"e9"]),
    name=st.sampled_from(["t.csv", "t.jsonl"]),
)
def test_a_damaged_file_is_an_error_or_a_workload(at: int, length: int, put: bytes, name: str) -> None:
    line = {"timestamp": 5, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}
    good = OWN.encode() if name.endswith(".csv") else (json.dumps(line) + "\n").encode() * 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(good[:at] + put + good[at + length :])
        try:
            read = len(read_trace(path))
        except BadTrace as error:
            read = len(str(error).partition(str(path))[2])
    assert read > 0


# -- public formats -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "arrivals"),
    [
        (("2023-11-16 18:15:46.6805900", "2023-11-16 18:15:50.9951690"), [0.0, 4.314579]),
        (("2024-05-10 00:00:00.009930+00:00", "2024-05-10 00:00:01+00:00"), [0.0, 0.99007]),
        (("2024-05-10T00:00:00Z", "2024-05-10T02:00:00.5+01:00"), [0.0, 3600.5]),
        (("2024-05-10 00:00:00", "2024-05-11 00:00:00.123456789"), [0.0, 86400.123456789]),
    ],
    ids=["2023", "2024", "zones", "nanoseconds"],
)
def test_azure_times(write: Write, times: tuple[str, str], arrivals: list[float]) -> None:
    work = read_trace(write(AZURE + "".join(f"{t},100,10\n" for t in times)))
    assert work.arrival_s.tolist() == arrivals


def test_azure_rows_out_of_order_are_sorted_and_counted(write: Write) -> None:
    notes: list[str] = []
    rows = ((3, 30), (1, 10), (2, 20), (2, 21), (4, 0))
    text = AZURE + "".join(f"2024-05-10 00:00:0{t}+00:00,{tokens},1\n" for t, tokens in rows)
    work = read_trace(write(text), notes=notes)
    assert work.arrival_s.tolist() == [0.0, 1.0, 1.0, 2.0]
    assert work.prompt_tokens.tolist() == [10, 20, 21, 30]
    assert notes == [
        "left out 1 of 5 rows: 0 ContextTokens",
        "sorted by TIMESTAMP: 1 of 4 rows stood behind a later one",
    ]


@pytest.mark.parametrize(
    ("rows", "where", "says"),
    [
        ("2024-05-10 00:00:00,1,1\nyesterday,1,1\n", "3", "is 'yesterday'"),
        ("2024-05-10 00:00:00,1,1\n2024-13-10 00:00:00,1,1\n", "3", "is '2024-13-10 00:00:00'"),
        ("2024-05-10 00:00:00,1,1\n2024-05-10 00:00:00Z,1,1\n", "3", "with a time zone where the first row is not"),
        ("2024-05-10 00:00:00Z,1,1\n2024-05-10 00:00:00,1,1\n", "3", "without a time zone where the first row is"),
        (",1,1\n", "2", "is missing"),
        ("2024-05-10 00:00:00,1.5,1\n", "2", "ContextTokens is 1.5"),
        ("2024-05-10 00:00:00,0,1\n", "", "no requests left"),
    ],
)
def test_bad_azure(write: Write, rows: str, where: str, says: str) -> None:
    found = error(write(AZURE + rows))
    assert found.where == where
    assert says in str(found)


def test_azure_as_parquet_with_real_times(tmp_path: Path) -> None:
    times = pa.array([1_000_000, 3_500_000], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"TIMESTAMP": times, "ContextTokens": [5, 6], "GeneratedTokens": [1, 2]}), tmp_path / "t")
    assert read_trace(tmp_path / "t").arrival_s.tolist() == [0.0, 2.5]


def test_burstgpt_leaves_failures_out_and_counts_them(write: Write) -> None:
    notes: list[str] = []
    rows = [
        "5,ChatGPT,472,18,490,Conversation log",
        "45,ChatGPT,1087,0,1087,API log",
        "118,GPT-4,417,276,693,Conversation log",
        "100,ChatGPT,0,3,3,API log",
        "90.5,ChatGPT,10,3,13,API log",
    ]
    work = read_trace(write(BURST + "\n".join(rows)), notes=notes)
    assert work.arrival_s.tolist() == [0.0, 85.5, 113.0]
    assert work.prompt_tokens.tolist() == [472, 10, 417]
    assert work.output_tokens.tolist() == [18, 3, 276]
    assert notes == [
        "left out 1 of 5 rows: 0 Response tokens, so the request failed",
        "left out 1 of 5 rows: 0 Request tokens",
        "requests to 2 models, taken as one traffic",
        "sorted by Timestamp: 1 of 3 rows stood behind a later one",
        "columns that are not used: Total tokens, Log Type",
    ]


def mooncake(*rows: tuple[int, int, list[int]]) -> str:
    return "".join(
        json.dumps({"timestamp": t, "input_length": n, "output_length": 7, "hash_ids": ids}) + "\n"
        for t, n, ids in rows
    )


def test_mooncake_prefixes_and_sessions(write: Write) -> None:
    notes: list[str] = []
    work = read_trace(
        write(
            mooncake(
                (0, 1300, [0, 1, 2]),  # a system prompt of one block, and a first turn
                (500, 900, [0, 10]),  # only the system prompt is shared: another session
                (500, 2600, [0, 1, 3, 4, 7, 8]),  # the next turn of the first: both of its full blocks
                (2000, 1024, [0, 10]),  # the second, again: all of it is cached, but for one token
                (2500, 2100, [0, 1, 3, 5, 6]),  # branches off within the third
                (2600, 2100, [90, 1, 3, 5, 6]),  # matches nothing from the start
                (2700, 3000, [0, 1, 3, 4, 7, 9]),  # goes on with the third
                (2800, 30, [91]),
                (2900, 30, [91]),
            ),
            "t.jsonl",
        ),
        notes=notes,
    )
    assert work.arrival_s.tolist() == [0, 0.5, 0.5, 2, 2.5, 2.6, 2.7, 2.8, 2.9]
    assert work.prefix_tokens.tolist() == [0, 512, 1024, 1023, 1536, 0, 2560, 0, 29]
    assert work.session is not None
    assert work.session.tolist() == [0, 1, 0, 1, 2, 3, 0, 4, 4]
    assert notes == ["4 requests go on with an earlier one's session; 2 share only a beginning with one"]


def test_mooncake_against_a_plain_reading(write: Write) -> None:
    """The whole-column matching finds what one set of seen blocks, walked through, does."""
    path = shared("mooncake_conversation_trace.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    seen: set[int] = set()
    prefixes = []
    for row in rows:
        matched = 0
        while matched < len(row["hash_ids"]) and row["hash_ids"][matched] in seen:
            matched += 1
        prefixes.append(min(512 * matched, row["input_length"] - 1))
        seen.update(row["hash_ids"])
    work = read_trace(path)
    assert work.prefix_tokens.tolist() == prefixes
    assert work.arrival_s.tolist() == [row["timestamp"] / 1000 for row in rows]
    assert work.output_tokens.tolist() == [row["output_length"] for row in rows]
    assert work.session is not None
    sizes = np.bincount(work.session)
    assert sizes.min() >= 1
    assert 5_000 < len(sizes) < 10_000  # conversations of 1.5 turns, not one that a shared system prompt holds together


@pytest.mark.parametrize(
    ("line", "column", "says"),
    [
        ('{"timestamp": 9, "input_length": 5', "", "is not JSON"),
        ('{"timestamp": 9, "input_length": 5, "output_length": 1}', "hash_ids", "is missing"),
        ('{"timestamp": 9, "input_length": "5", "output_length": 1, "hash_ids": [1]}', "input_length", "is '5'"),
        ('{"timestamp": 9, "input_length": 5.5, "output_length": 1, "hash_ids": [1]}', "input_length", "is 5.5"),
        ('{"timestamp": 9, "output_length": 1, "hash_ids": [1]}', "input_length", "is missing"),
        ('{"timestamp": 9, "input_length": true, "output_length": 1, "hash_ids": [1]}', "input_length", "is True"),
        ('{"timestamp": 9, "input_length": 5, "output_length": 1, "hash_ids": ["a"]}', "hash_ids", "no list of whole"),
        ('{"timestamp": 9, "input_length": 5, "output_length": 1, "hash_ids": [1, 2]}', "hash_ids", "holds 2 blocks"),
        ('{"timestamp": -1, "input_length": 5, "output_length": 1, "hash_ids": [1]}', "timestamp", "is -1"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [1]}', "timestamp", "Sort the rows"),
        ("[1]", "", "is not a JSON object"),
    ],
)
def test_bad_mooncake_says_where(write: Write, line: str, column: str, says: str) -> None:
    found = error(write(mooncake((5, 600, [1, 2])) + "\n" + line + "\n", "t.jsonl"))
    assert (found.where, found.column) == ("3", column), str(found)
    assert says in str(found)


def test_mooncake_without_blocks_knows_no_prefix(write: Write) -> None:
    notes: list[str] = []
    text = '{"timestamp": 9, "input_length": 5, "output_length": 1}\n'
    work = read_trace(write(text, "t.jsonl"), notes=notes)
    assert work.prefix_tokens.tolist() == [0]
    assert work.session is None
    assert notes == ["no hash_ids: nothing is known of the prefix cache"]


def test_azure_conversation_trace() -> None:
    notes: list[str] = []
    work = read_trace(shared("AzureLLMInferenceTrace_conv.csv"), notes=notes)
    assert len(work) == 19_366
    assert notes == []
    assert work.arrival_s[0] == 0.0
    assert work.duration_s == pytest.approx(3501.721937, abs=1e-9)
    assert (work.prompt_tokens[0], work.output_tokens[0]) == (374, 44)
    assert (work.prompt_tokens[-1], work.output_tokens[-1]) == (197, 183)


# -- units, and formats that share names ----------------------------------------------------------------------------------


def lines(times: list[float], *, prompt: int = 600, block: int | None = None, chat: bool = False) -> str:
    """JSON lines with the three names that Mooncake's and Bailian's traces share."""
    rows = []
    for i, at in enumerate(times):
        row: dict[str, object] = {"timestamp": at, "input_length": prompt, "output_length": 7}
        if chat:
            row |= {"chat_id": i, "parent_chat_id": -1, "type": "text", "turn": 1}
        if block is not None:
            row["hash_ids"] = [1000 * i + k for k in range(-(-prompt // block))]
        rows.append(json.dumps(row))
    return "\n".join(rows) + "\n"


def steps(rate: float, n: int = 40, unit: str = "s") -> list[float]:
    """Arrivals at ``rate`` a second, as seconds with three digits or as whole milliseconds, not evenly."""
    seconds = [(i + 0.3 * (i % 3)) / rate for i in range(n)]
    return [round(s, 3) for s in seconds] if unit == "s" else [float(round(1e3 * s)) for s in seconds]


@pytest.mark.parametrize(
    ("text", "name", "unit", "rate"),
    [
        (lines(steps(7.9), chat=True), "bailian", "s", 7.9),
        (lines(steps(0.3), chat=True), "bailian", "s", 0.3),
        (lines(steps(7.9), block=16), "bailian", "s", 7.9),
        (lines(steps(7.9), block=16, chat=True), "bailian", "s", 7.9),
        (lines(steps(7.9, unit="ms"), chat=True), "bailian", "ms", 7.9),
        (lines(steps(7.9)), "mooncake", "s", 7.9),
        (lines(steps(7.9), block=512), "mooncake", "s", 7.9),
        (lines(steps(3.4, unit="ms"), block=512), "mooncake", "ms", 3.4),
        (lines(steps(200.0, unit="ms"), block=512), "mooncake", "ms", 200.0),
        (lines(steps(3.4, unit="ms")), "mooncake", "ms", 3.4),
    ],
)
def test_the_unit_is_the_one_that_the_values_allow(write: Write, text: str, name: str, unit: str, rate: float) -> None:
    notes: list[str] = []
    found = read(write(text, "t.jsonl"), notes=notes)
    assert (found.format, found.time_unit) == (name, unit)
    assert found.rate_per_s == pytest.approx(rate, rel=0.05)
    assert found.span_s == pytest.approx(39 / rate, rel=0.05)
    usual = "s" if name == "bailian" else "ms"
    assert any("by its values" in note for note in notes) == (unit != usual)


@pytest.mark.parametrize(
    ("text", "ask"),
    [
        (lines(steps(0.5)), "--time-unit ms or --time-unit s"),
        (lines(steps(0.013)), "--time-unit ms or --time-unit s"),
        (lines(steps(100.0, unit="ms"), chat=True), "--time-unit s or --time-unit ms"),
        (lines([1e6 * t for t in range(1, 40)]), "--time-unit us"),
    ],
)
def test_where_two_units_are_as_likely_it_is_asked(write: Write, text: str, ask: str) -> None:
    path = write(text, "t.jsonl")
    found = error(path)
    assert found.column == "timestamp"
    assert ask in str(found)
    assert "requests a second" in str(found)
    seconds, thousandths = (read(path, time_unit=unit) for unit in ("s", "ms"))
    assert seconds.span_s == pytest.approx(1e3 * thousandths.span_s)
    assert (seconds.time_unit, thousandths.time_unit) == ("s", "ms")


@given(
    rate=st.floats(0.03, 900.0),
    n=st.integers(12, 60),
    unit=st.sampled_from(["s", "ms"]),
    block=st.sampled_from([None, 16, 512]),
    chat=st.booleans(),
)
def test_a_time_is_never_read_in_another_unit(rate: float, n: int, unit: str, block: int | None, chat: bool) -> None:
    """It is read right, or it is asked for."""
    times = steps(rate, n, unit)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.jsonl"
        path.write_text(lines(times, block=block, chat=chat))
        try:
            found = read(path)
        except BadTrace as problem:
            asked = str(problem)
        else:
            asked = ""
    if asked:
        assert "--time-unit" in asked
        return
    second = 1.0 if unit == "s" else 1e-3
    assert found.span_s == pytest.approx((times[-1] - times[0]) * second)


def test_bailian_prefixes_are_of_16_tokens_and_its_sessions_those_of_its_chats(write: Write) -> None:
    rows = [
        {"chat_id": 7, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 40, "hash_ids": [1, 2, 3]},
        {"chat_id": 8, "parent_chat_id": -1, "timestamp": 1.25, "input_length": 40, "hash_ids": [1, 4, 5]},
        {"chat_id": 9, "parent_chat_id": 7, "timestamp": 2.0, "input_length": 70, "hash_ids": [1, 2, 6, 7, 8]},
    ]
    text = "".join(json.dumps(row | {"output_length": 7, "type": "text", "turn": 1}) + "\n" for row in rows)
    found = read(write(text, "t.jsonl"))
    assert found.workload.arrival_s.tolist() == [0.5, 1.25, 2.0]
    assert found.workload.prefix_tokens.tolist() == [0, 16, 32]
    assert found.workload.session is not None
    assert found.workload.session.tolist() == [0, 1, 0]
    assert found.unread == ("type", "turn")


def test_columns_that_are_not_read_are_named(write: Write) -> None:
    header = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    notes: list[str] = []
    rows = "5,a,1.5,ChatGPT,472,18,490,API log\n45,a,2,ChatGPT,10,18,28,API log\n"
    found = read(write(header + rows), notes=notes)
    assert found.unread == ("Session ID", "Elapsed time", "Total tokens", "Log Type")
    assert (found.format, found.time_unit, found.span_s) == ("burstgpt", "s", 40.0)
    assert "columns that are not used: Session ID, Elapsed time, Total tokens, Log Type" in notes


def test_a_stated_unit_counts_and_one_that_is_none_is_refused(write: Write) -> None:
    own = write(OWN)
    notes: list[str] = []
    assert read(own, notes=notes, time_unit="ms").workload.duration_s == pytest.approx(0.0005)
    assert any("as stated" in note for note in notes)
    with pytest.raises(BadTrace, match="Time units: s, ms, us, ns"):
        read(own, time_unit="min")
    with pytest.raises(BadTrace, match="Leave --time-unit out"):
        read(write(AZURE + "2024-05-10 00:00:00,1,1\n", "a.csv"), time_unit="ms")


@pytest.mark.parametrize("name", ["Azure 2023", "azure_2024", "azure"])
def test_formats_by_name(write: Write, name: str) -> None:
    assert len(read_trace(write(AZURE + "2024-05-10 00:00:00,1,1\n"), name)) == 1
