"""The documents: links lead somewhere, examples run, commands parse, tables are results.csv's."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
import runs
import study
import train
from models.vae import VAE

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
DOORS = {"train.py": train.main, "evaluate.py": evaluate.main, "study.py": study.main}


def by_path(path):
    return str(path.relative_to(ROOT))


def anchors(document: Path) -> set[str]:
    """The anchors of the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text).strip().lower().replace(" ", "-") for text in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=by_path)
def test_links_lead_somewhere(document):
    for link in LINK.findall(document.read_text(encoding="utf-8")):
        name, _, heading = link.partition("#")
        target = document.parent / name if name else document
        if "://" not in link:
            assert target.exists(), link
            assert not heading or heading in anchors(target), link


def commands(document: Path) -> list[str]:
    """All commands of the three doors in the fenced blocks of a document."""
    lines = []
    for language, block in BLOCK.findall(document.read_text(encoding="utf-8")):
        if language in ("sh", "bash"):
            lines += block.replace("\\\n", " ").splitlines()
    return [line for line in lines if re.match(r"(python|torchrun .*) *\w+\.py ", line)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=by_path)
def test_commands_parse(document, monkeypatch):
    def stop(*arguments):
        raise SystemExit(0)  # the command line was understood

    for line in commands(document):
        words = shlex.split(line, comments=True)
        door = next(word for word in words if word.endswith(".py"))
        arguments = words[words.index(door) + 1 :]
        assert door in DOORS or (ROOT / door).exists(), line
        monkeypatch.setattr(runs, "exit_code", stop)
        with pytest.raises(SystemExit) as end:
            DOORS.get(door, stop)(arguments)
        assert end.value.code == 0, line
        if door == "train.py" and "--config" in arguments:
            config = arguments[arguments.index("--config") + 1]
            overrides = [w for w in arguments if "=" in w and not w.startswith("-")]
            assert runs.resolve(ROOT / config, overrides), line


def example(name: str, **names):
    """The function or class of this name in docs/extend.md."""
    for language, block in BLOCK.findall((ROOT / "docs/extend.md").read_text(encoding="utf-8")):
        if language == "python" and re.search(rf"^(def|class) {name}\b", block, re.MULTILINE):
            exec(block, names)
            return names[name]
    raise AssertionError(f"docs/extend.md has no example {name}")


def test_the_objective_and_the_networks_in_the_documents_train(monkeypatch):
    import models.vae

    names = vars(models.networks)  # those of the file that the example becomes a part of
    monkeypatch.setitem(models.vae.NETWORKS, "burgess", example("burgess", **names))
    model = VAE((1, 64, 64), example("squared_kl"), network="burgess", latent_dim=2)
    terms = model.train_step(torch.rand(2, 1, 64, 64), 0)
    assert terms["loss"] == pytest.approx(float(terms["recon"] + 0.1 * terms["kl"] ** 2))


def test_the_metric_in_the_documents_scores():
    from metrics import as_samples

    factors = np.random.default_rng(0).integers(4, size=(200, 2))
    metric, rng = example("correlation"), np.random.default_rng(1)
    assert metric(as_samples(-factors, factors), rng, num_samples=150).score > 0.99


def test_the_data_set_in_the_documents_loads(tmp_path):
    data = example("load_discs")(tmp_path)
    assert data.image_shape == (3, 128, 128)
    assert len(data.grid) == len(data) == 6 * 3 * 8 * 8


def test_the_log_sink_in_the_documents_resumes(tmp_path):
    sink_class = example("JsonSink")
    for last_step, steps in ((0, (1, 2, 3)), (2, (3,))):
        sink = sink_class(tmp_path / "log.json", last_step)
        for step in steps:
            sink.row(step, {"recon": step / 2})
        sink.sync()
        sink.close()
    assert len((tmp_path / "log.json").read_text().splitlines()) == 3


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    assert len(text.split()) <= 1600


@pytest.mark.parametrize("door", ["train.py", "evaluate.py", "study.py", "benchmarks/speed.py"])
def test_help_is_printed(door):
    result = subprocess.run([sys.executable, door, "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    assert "usage:" in result.stdout
