"""The rooms import each other only along the arrows of the design."""

import ast
from pathlib import Path

import pytest

ROOMS = {"config", "data", "models", "metrics", "training", "figures"}
DOORS = {
    "train.py": {"config", "data", "models", "training", "figures"},
    "evaluate.py": {"config", "data", "models", "metrics", "training", "figures"},
    "sweep.py": {"config", "data", "models", "metrics", "training", "train"},
    "publish.py": {"config", "training", "train"},
    "report.py": {"config", "evaluate", "metrics", "sweep", "train", "training", "figures"},
    "figure6.py": {"data", "evaluate", "models", "metrics", "training", "figures"},
}
FILES = [path for room in sorted(ROOMS) for path in sorted(Path(room).rglob("*.py"))]


def imported(path):
    """The first names of all modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert all(alias.name != "*" for alias in node.names), f"{path}: import *"
            found.add(node.module.split(".")[0])
    return found


def imported_rooms(path):
    return imported(path) & (ROOMS | {Path(door).stem for door in DOORS} | {"tests", "benchmarks"})


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_room_imports_only_itself(path):
    assert imported_rooms(path) <= {path.parts[0]}


@pytest.mark.parametrize("door", DOORS)
def test_a_door_imports_what_is_behind_it(door):
    assert imported_rooms(Path(door)) <= DOORS[door]


@pytest.mark.parametrize("path", sorted(Path("metrics").glob("*.py")), ids=str)
def test_no_metric_touches_a_network(path):
    assert not imported(path) & {"torch", "torchvision"}


def test_every_room_was_looked_at():
    assert {path.parts[0] for path in FILES} == ROOMS
