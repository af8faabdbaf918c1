"""What the models of many runs have in common, their pictures, and the page of each run."""

import itertools
import math
import re
from collections import defaultdict
from pathlib import Path

import config
import files
import results
import runs
from figures.latents import measure, model_traversals, reconstructions
from figures.page import Table, run_page
from results import text
from training.folder import read_record

COMPARED = ("twoD_vae", "twoD", "twoD_infogan_broadcast")  # in traversals.png, two_curves.png
COLUMNS = 14  # of reconstructions.png


def compare(folders: list[Path], out: Path, names: dict[str, str]) -> dict[str, list[float]]:
    """Load every model: write the page of each run, and return its scores of AGREEMENT, or nan.

    Args:
        out: folder for the pictures of the first run of each configuration in `names`.
        names: configuration -> name of its row, in this order.
    """
    scores = {metric: [math.nan] * len(folders) for metric in results.AGREEMENT}
    groups, first = defaultdict(dict), {}
    for index, folder in enumerate(folders):
        try:
            run = runs.load(folder)
            codes = runs.encode(run.model, run.data, results.shared_rows(len(run.data)))
            groups[run.values["name"]][index] = codes
            first.setdefault(run.values["name"], run)
            files.write(folder / "report.html", page_of_run(run))
        except (ValueError, OSError) as error:
            print(f"no page and no comparison: {error}")
    shown = {row: first[name] for name, row in plain(names).items() if name in first}
    if shown:
        draw(shown, out)
    several = {name: codes for name, codes in groups.items() if len(codes) > 1}
    for metric, (name, codes) in itertools.product(scores, several.items()):
        try:
            for index, score in zip(codes, results.agreement(metric, codes.values()), strict=True):
                scores[metric][index] = score
        except ValueError as error:
            print(f"{name} has no {metric}: {error}")
    return scores


def draw(shown: dict[str, runs.Run], out: Path) -> None:
    """Write reconstructions.png of all runs, by name, and traversals.png of those in COMPARED."""
    data = next(iter(shown.values())).data
    images, title = runs.picture_images(data), "Images and their reconstructions"
    models = {row: run.model for row, run in shown.items()}
    picture = reconstructions(models, images[:COLUMNS], title=title, columns=COLUMNS)
    files.write(out / "reconstructions.png", picture)
    compared = {
        row: (run.model, measure(run.model, images), runs.factor_names(run.model, data))
        for row, run in shown.items()
        if run.values["name"] in COMPARED
    }
    if compared:
        name, reference = list(data.reference_images().items())[:2][-1]  # an ellipse of dSprites
        title = f"Traversals of one image: {name}"
        files.write(out / "traversals.png", model_traversals(compared, reference, title=title))


def page_of_run(run: runs.Run) -> bytes:
    """The page of a run with a slider for each latent, from its model and its folder."""
    references = list(run.data.reference_images().items())[:2]  # more sliders take too much room
    rows, facts, starts = [], [], read_record(run.path)["starts"]
    for key, entry in results.read_scores(run.path)["scores"].items():
        parts = [f"{name} {text(value)}" for name, value in entry.get("per_factor", {}).items()]
        rows.append([key, text(entry["score"]), entry.get("reason", ", ".join(parts))])
    for start in starts:
        start |= start.pop("hardware", {})
        facts += [[key, str(value)] for key, value in start.items()]
    pictures = [path for path in sorted(run.path.iterdir()) if path.suffix in (".png", ".gif")]
    return run_page(
        run.model,
        dict(references),
        measure(run.model, runs.picture_images(run.data)),
        factor_names=runs.factor_names(run.model, run.data),
        pictures={path.stem: path.read_bytes() for path in pictures},
        title=run.label,
        note=f"{run.images_seen:,} images of {run.data.name} seen in {run.step:,} steps.",
        scores=Table("Scores", "", ["score", "value", "by factor"], rows),
        facts=Table("Starts of the training", "", ["fact", "value"], facts),
        commands=[start["command"] for start in starts[:1]],
        configuration=config.to_yaml(run.values),
    )


def plain(names: dict[str, str]) -> dict[str, str]:
    """Names of rows without their links."""
    return {key: re.sub(r"\[(.*?)\]\(.*?\)", r"\1", name) for key, name in names.items()}
