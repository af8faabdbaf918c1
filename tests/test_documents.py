"""The documents: what they link to and show is there, and their examples run."""

import itertools
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

import metrics.prediction
import models.objectives
from metrics.samples import as_samples
from models.vae import VAE

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    *sorted(ROOT.glob("benchmarks/*.md")),
    *sorted(ROOT.glob("res/*/*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(text: str) -> set[str]:
    """What headings of a document can be linked to as."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


def broken_links(document: Path) -> list[str]:
    """Links of a document to a file or heading that is not there; those to the network pass."""
    broken = []
    for link in LINK.findall(document.read_text(encoding="utf-8")):
        name, _, heading = link.partition("#")
        target = document.parent / name if name else document
        if "://" in link:
            continue
        found = target.exists()
        if found and heading:
            found = heading in anchors(target.read_text(encoding="utf-8"))
        if not found:
            broken.append(link)
    return broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    assert not broken_links(document)


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "there.md").write_text("# 1. A heading, long\n")
    document = tmp_path / "links.md"
    document.write_text(
        "[a](there.md) [b](there.md#1-a-heading-long) [c](https://example.org/x)\n"
        "![d](gone.png) [e](there.md#2-no-heading) [f](#none)\n"
    )
    assert broken_links(document) == ["gone.png", "there.md#2-no-heading", "#none"]


def example(name: str, **names):
    """The function of this name in README.md, with the names of the modules that it goes into."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"    def {name}("))
    code = [lines[start], *itertools.takewhile(str.strip, lines[start + 1 :])]
    exec(textwrap.dedent("\n".join(code)), names)
    return names[name]


def test_the_objective_in_the_readme_trains():
    objective = example("my_vae", **vars(models.objectives))
    model = VAE((1, 64, 64), objective, latent_dim=2)
    terms = model.train_step(torch.rand(2, 1, 64, 64), 0)
    assert terms["loss"] == pytest.approx(float(terms["recon"] + 10 * terms["kl"] ** 2))


def test_the_metric_in_the_readme_scores():
    metric = example("my_metric", **vars(metrics.prediction))
    factors = np.random.default_rng(0).integers(4, size=(200, 2))
    rng = np.random.default_rng(1)
    assert metric(factors.astype(float), factors, rng, num_samples=150).score == pytest.approx(1)
    assert metric(as_samples(-factors, factors), None, rng, num_samples=150).score > 0.99
