"""The repository stays small enough to be read in one evening (`make size` prints the numbers)."""

import statistics
from pathlib import Path

FOLDERS = ("config", "data", "models", "metrics", "training", "figures", "benchmarks")
LINES, TEST_LINES, LONGEST, DOOR = 8300, 6480, 350, {"train.py": 220}


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def sources() -> dict[str, int]:
    """Lines of every Python file that is no test."""
    paths = [*Path().glob("*.py"), *(p for f in FOLDERS for p in Path(f).rglob("*.py"))]
    return {str(path): lines(path) for path in sorted(paths)}


def test_the_code_is_short():
    counts = sources()
    assert sum(counts.values()) <= LINES
    assert max(counts.values()) <= LONGEST, max(counts, key=counts.get)
    assert all(counts[path] <= limit for path, limit in DOOR.items())


def test_the_tests_are_short():
    assert sum(lines(path) for path in Path("tests").rglob("*.py")) <= TEST_LINES


if __name__ == "__main__":
    counts = sources()
    for path, count in sorted(counts.items(), key=lambda item: -item[1]):
        print(f"{count:6,} {path}")
    median = statistics.median(counts.values())
    print(f"{sum(counts.values()):6,} lines in {len(counts)} files, median {median:g}")
    print(f"{sum(lines(p) for p in Path('tests').rglob('*.py')):6,} lines of tests")
