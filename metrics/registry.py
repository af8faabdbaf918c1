"""The metrics by their names; what code a score depends on."""

import ast
import difflib
import hashlib
import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from metrics.information import (
    gaussian_total_correlation,
    infoc,
    infom,
    mig,
    mig_chen,
    modularity,
    mutual_info_score,
)
from metrics.interventions import beta_vae, beta_vae_paper, factor_vae, irs
from metrics.prediction import dci, dci_fast, explicitness, infoe, sap, sap_continuous
from metrics.result import Result

FOLDER = Path(__file__).resolve().parent
ASPECTS = ("disentanglement", "completeness", "informativeness")
JOINT = {"dci": dci, "dci_fast": dci_fast}  # one computation, a score for each aspect
PARTS = {f"{name}_{aspect}": (name, aspect) for name in JOINT for aspect in ASPECTS}


def _aspect(name: str, aspect: str) -> Callable[..., Result]:
    def metric(codes, factors, rng: np.random.Generator, **settings) -> Result:
        return JOINT[name](codes, factors, rng, **settings)[aspect]

    return metric


METRICS: dict[str, Callable[..., Result]] = {
    "beta_vae_paper": beta_vae_paper,
    "beta_vae": beta_vae,
    "factor_vae": factor_vae,
    "mig": mig,
    "mig_chen": mig_chen,
    "sap": sap,
    "sap_continuous": sap_continuous,
    **{key: _aspect(*part) for key, part in PARTS.items()},
    "modularity": modularity,
    "explicitness": explicitness,
    "irs": irs,
    "infom": infom,
    "infoc": infoc,
    "infoe": infoe,
    "gaussian_total_correlation": gaussian_total_correlation,
    "mutual_info_score": mutual_info_score,
}
LOWER_IS_BETTER = ("gaussian_total_correlation", "mutual_info_score")


def select(names) -> list[str]:
    """Keys of METRICS for names that may be keys, "dci", "dci_fast" or "all"; in METRICS' order.

    Raises ValueError for an unknown name.
    """
    groups = {"all": list(METRICS)}
    groups |= {name: [key for key in PARTS if PARTS[key][0] == name] for name in JOINT}
    wanted = set()
    for name in map(str.strip, names):
        if name not in METRICS and name not in groups:
            close = difflib.get_close_matches(name, [*METRICS, *groups], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise ValueError(
                f"unknown metric {name!r}{hint} Allowed are all, dci, dci_fast, "
                f"{', '.join(METRICS)}"
            )
        wanted.update(groups.get(name, [name]))
    return [key for key in METRICS if key in wanted]


@cache
def code_of(key: str) -> str:
    """What changes with the code behind a score of METRICS: 16 digits of a SHA-256 of `sources`."""
    code = b"".join(file.read_bytes() for file in sorted(sources(key)))
    return hashlib.sha256(code).hexdigest()[:16]


def sources(key: str) -> set[Path]:
    """The files of metrics/ behind a score: the metric's, what it imports, and what draws."""
    name, _ = PARTS.get(key, (key, None))
    found, new = set(), {Path(inspect.getsourcefile(JOINT.get(name) or METRICS[name]))}
    while new:
        found |= new
        new = {file for source in new for file in _imports(source)} - found
    return found | {FOLDER / "score.py"}


def _imports(source: Path) -> set[Path]:
    """The files of metrics/ that a source file imports."""
    nodes = ast.walk(ast.parse(source.read_bytes()))
    modules = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    own = (module.removeprefix("metrics.") for module in modules if module.startswith("metrics."))
    return {FOLDER / f"{module}.py" for module in own}
