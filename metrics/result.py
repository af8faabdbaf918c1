"""What every metric returns: the score, the protocol it follows and the detail behind it."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Result:
    """A score with its protocol, settings and detail.

    score: the published number. per_factor, per_code: name -> number that the score is made of.
    matrix: (D codes, K factors) behind the score, in the unit that `matrix_kind` names;
    `factors` are the names of its columns.
    """

    score: float
    protocol: str
    settings: dict
    per_factor: dict[str, float] = field(default_factory=dict)
    per_code: dict[str, float] = field(default_factory=dict)
    matrix: np.ndarray | None = None
    matrix_kind: str = ""
    factors: tuple[str, ...] = ()

    def to_json(self) -> dict:
        """The result as plain JSON values; detail that the metric does not have is left out."""
        entry = {"score": float(self.score), "protocol": self.protocol}
        for key in ("per_factor", "per_code"):
            if detail := getattr(self, key):
                entry[key] = {name: float(value) for name, value in detail.items()}
        if self.matrix is not None:
            entry["matrix"] = {
                "kind": self.matrix_kind,
                "factors": list(self.factors),
                "values": np.asarray(self.matrix, dtype=np.float64).tolist(),
            }
        settings = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in self.settings.items()}
        return entry | {"settings": settings}  # NumPy's numbers and arrays as Python's


def by_name(names, values) -> dict[str, float]:
    """Name -> number, for `per_factor`."""
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def by_code(values) -> dict[str, float]:
    """'code 0' -> number, for `per_code`; `values` (D,)."""
    return {f"code {i}": float(value) for i, value in enumerate(values)}
