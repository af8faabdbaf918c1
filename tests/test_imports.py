"""Three floors: doors import the middle and the rooms, rooms import nothing of ours."""

import ast
from pathlib import Path

import pytest

ROOMS = {"config", "data", "models", "metrics", "training", "figures"}
MIDDLE = {"runs", "results", "reports", "comparison", "codes"}
DOORS = {"train", "evaluate", "study", "benchmarks"}
LEAF = "files"  # the one module below the rooms
FOLDERS = sorted(ROOMS | {"benchmarks"})
SOURCES = [
    *sorted(Path().glob("*.py")),
    *(path for folder in FOLDERS for path in sorted(Path(folder).rglob("*.py"))),
]
ALLOWED = {  # floor -> what its files may import of ours
    LEAF: set(),
    "room": {LEAF},
    "middle": {LEAF} | ROOMS | MIDDLE,
    "door": {LEAF} | ROOMS | MIDDLE,
}


def floor(name: str) -> str:
    if name == LEAF:
        return LEAF
    floors = {"room": ROOMS, "middle": MIDDLE, "door": DOORS}
    return next(floor for floor, names in floors.items() if name in names)


def imported(path: Path) -> set[str]:
    """The first names of all modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert all(alias.name != "*" for alias in node.names), f"{path}: import *"
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_run_downwards_only(path):
    name = path.parts[0].removesuffix(".py")
    ours = imported(path) & (ROOMS | MIDDLE | DOORS | {LEAF, "tests"})
    assert ours <= ALLOWED[floor(name)] | {name}


@pytest.mark.parametrize("path", sorted(Path("metrics").glob("*.py")), ids=str)
def test_no_metric_touches_a_network(path):
    assert not imported(path) & {"torch", "torchvision"}


def test_every_room_is_there():
    assert {path.parts[0] for path in SOURCES if len(path.parts) > 1} == ROOMS | {"benchmarks"}
