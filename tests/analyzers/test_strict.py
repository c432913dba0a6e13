"""JSON objects as dataclasses: what is read, and what is said of what cannot be."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from analyzers import strict
from analyzers.strict import APART, NumberOrArray


@dataclass(frozen=True, slots=True)
class Wheel:
    radius_m: float
    spokes: int = 32

    def __post_init__(self) -> None:
        if self.radius_m <= 0:
            raise ValueError("wheel: radius_m must be above 0")


@dataclass(frozen=True, kw_only=True)
class Bicycle:
    front: Wheel
    rear: Wheel | None = None
    spares: tuple[Wheel, ...] = ()
    gears: tuple[tuple[float, int], ...] = ()
    frame: Literal["steel", "carbon"] = "steel"
    loads_kg: NumberOrArray = 0.0
    longest_km: float = math.inf
    electric: bool = False
    owner: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    ridden_by: Annotated[object, APART] = None


FRONT = {"radius_m": 0.3}


def test_what_is_written_is_read_and_written_again() -> None:
    data = {
        "front": {"radius_m": 0.3, "spokes": 28},
        "rear": {"radius_m": 1, "spokes": 32},
        "spares": [{"radius_m": 0.2, "spokes": 32}],
        "gears": [[1.5, 2], [3, 4]],
        "frame": "carbon",
        "loads_kg": [1, 2.5],
        "longest_km": 90.0,
        "electric": True,
        "owner": "Ann",
        "notes": {"any": ["thing"]},
    }
    made = strict.read(Bicycle, data)
    assert (made.front, made.rear, made.spares) == (Wheel(0.3, 28), Wheel(1.0), (Wheel(0.2),))
    assert (made.gears, made.frame, made.electric, made.owner) == (((1.5, 2), (3.0, 4)), "carbon", True, "Ann")
    assert isinstance(made.loads_kg, np.ndarray)
    assert made.loads_kg.tolist() == [1.0, 2.5]
    assert strict.plain(made) == data


def test_what_is_not_known_or_has_no_bound_is_not_written() -> None:
    made = strict.read(Bicycle, {"front": FRONT, "rear": None, "loads_kg": 3})
    assert (made.rear, made.longest_km, made.loads_kg) == (None, math.inf, 3.0)
    found = strict.plain(made)
    assert not {"rear", "owner", "longest_km", "ridden_by"} & set(found)
    assert strict.read(Bicycle, found) == made


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "the file must be an object, not []"),
        ({}, "front: missing"),
        ({"front": {}}, "front.radius_m: missing"),
        ({"front": {"radius": 1}}, "front.radius: unknown field; did you mean radius_m?"),
        ({"front": FRONT, "frnt": 1}, "frnt: unknown field; did you mean front?"),
        ({"front": FRONT, "x": 1}, "x: unknown field; known: electric, frame, front, gears, loads_kg, "),
        ({"front": FRONT, "ridden_by": None}, "ridden_by: unknown field; known: "),
        ({"front": None}, "front must be an object, not None"),
        ({"front": FRONT, "rear": 5}, "rear must be an object or null, not 5"),
        ({"front": {"radius_m": "big"}}, "front.radius_m must be a finite number, not 'big'"),
        ({"front": {"radius_m": math.nan}}, "front.radius_m must be a finite number, not 'NaN'"),
        ({"front": {"radius_m": True}}, "front.radius_m must be a finite number, not True"),
        ({"front": {"radius_m": 1, "spokes": 1.0}}, "front.spokes must be a whole number, not 1.0"),
        ({"front": {"radius_m": 0}}, "front: wheel: radius_m must be above 0"),
        ({"front": FRONT, "spares": FRONT}, "spares must be a list, not {'radius_m': 0.3}"),
        ({"front": FRONT, "spares": [FRONT, {"radius": 1}]}, "spares[1].radius: unknown field; did you mean radius_m?"),
        ({"front": FRONT, "spares": [FRONT, {"radius_m": 0}]}, "spares[1]: wheel: radius_m must be above 0"),
        ({"front": FRONT, "gears": [[1, 2], [1]]}, "gears[1] must be a list of 2, not [1]"),
        ({"front": FRONT, "gears": [[1, 2, 3]]}, "gears[0] must be a list of 2, not [1, 2, 3]"),
        ({"front": FRONT, "gears": [[1, 2], ["fast"]]}, "gears[1][0] must be a finite number, not 'fast'"),
        ({"front": FRONT, "frame": "stel"}, "frame: 'stel' is not known; did you mean steel?"),
        ({"front": FRONT, "loads_kg": "heavy"}, "loads_kg must be a finite number or a list, not 'heavy'"),
        ({"front": FRONT, "loads_kg": [1, None]}, "loads_kg[1] must be a finite number, not None"),
        ({"front": FRONT, "electric": 1}, "electric must be true or false, not 1"),
        ({"front": FRONT, "owner": 3}, "owner must be text or null, not 3"),
        ({"front": FRONT, "notes": 3}, "notes must be an object, not 3"),
    ],
)
def test_what_is_wrong_says_where_and_what(data: object, says: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(says)}"):
        strict.read(Bicycle, data)


def test_a_part_of_a_file_says_its_place() -> None:
    for data, says in (
        ({"front": FRONT, "owners": 1}, "bicycle.owners: unknown field; did you mean owner?"),
        ({"front": FRONT, "makr": 1}, "bicycle.makr: unknown field; did you mean maker?"),
        ({}, "bicycle.front: missing"),
        (3, "bicycle must be an object, not 3"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
            strict.read(Bicycle, data, "bicycle", also=("maker",))


def test_single_values_are_changed_by_the_shortest_name_that_only_one_has() -> None:
    data = strict.plain(strict.read(Bicycle, {"front": FRONT}))
    found = strict.read(Bicycle, strict.changed(Bicycle, data, {"front.spokes": 20, "frame": "carbon"}))
    assert (found.front, found.frame) == (Wheel(0.3, 20), "carbon")
    with pytest.raises(ValueError, match=r"fram: there is no such setting; did you mean frame\?"):
        strict.changed(Bicycle, data, {"fram": 1})
    with pytest.raises(ValueError, match="spokes: there is no such setting"):  # two wheels have them
        strict.changed(Bicycle, data, {"spokes": 1})
