"""Pictures and pages: what is in which cell, what is written beside it, what a page loads."""

import base64
import io
import re

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageSequence
from torch import nn

from figures import canvas, charts, latents, page

NATS = [1.5, 2.5, 0.01, 0.04]  # z1, z0, and two inactive latents
NAMES = ["<posX>", "posY", "shape", ""]
MATRIX = np.array([[0.1, 0, 2], [0.01, 0, 0.02], [0.9, 0.1, 0], [0, 0, 1], [0.3, 0.3, 0.2]])
COUNTS = {"step": [1, 2], "images": [8, 16]}
ROWS = np.arange(1, 121)
VAE_LOG = pd.DataFrame({"step": 10 * ROWS, "images": 640 * ROWS, "recon": 500 / ROWS, "elbo": 1})
VAE_LOG = VAE_LOG.assign(note="x", kl=2.0, kl_0=0.001, kl_1=1.2, kl_2=0.8)
NOISE = torch.tensor([-1.0, 1, 2, 0.4])


class Stripes(nn.Module):
    """Latent d is the brightness of a stripe of four columns of the image."""

    span, information_name = (-3, 3), "KL"

    def __init__(self, latent_dim=4, channels=1, size=64, dtype=torch.float32):
        super().__init__()
        self.latent_dim, self.shape, self.dtype = latent_dim, (channels, size, size), dtype

    def decode(self, z):
        x = torch.zeros(len(z), *self.shape, dtype=self.dtype)
        x[..., : 4 * self.latent_dim] = ((z + 4) / 8).repeat_interleave(4, 1)[:, None, None]
        return x

    def encode(self, x):
        return 8 * x[:, 0, 0, : 4 * self.latent_dim : 4] - 4

    def information(self, x):
        return torch.arange(self.latent_dim) * x.mean()

    def sample(self, n, generator):
        return torch.randn(n, self.latent_dim, generator=generator)


MODEL = Stripes()
REFERENCES = {"image": MODEL.decode(torch.tensor([[2.0, -1, 0, 0]]))[0], "noise": NOISE}


@pytest.fixture
def texts(monkeypatch):
    """Records the text in pictures, in its order."""
    strings, text = [], canvas.text

    def record(string, size=12):
        strings.append(string)
        return text(string, size)

    for module in (canvas, latents):
        monkeypatch.setattr(module, "text", record)
    return strings


@pytest.fixture
def panels(monkeypatch):
    """Returns the panels of the last chart."""
    drawn, save = [], charts.to_bytes
    monkeypatch.setattr(charts, "to_bytes", lambda figure: drawn.append(figure) or save(figure))
    return lambda: drawn[-1].axes


def opened(data):
    return Image.open(io.BytesIO(data))


def grey(picture):
    return np.asarray(picture.convert("L")).astype(int)


def pixels(images):
    return (images[..., 0, :, :].float().clamp(0, 1) * 255).round().int().numpy()


def moving(latent, count):
    """Codes that differ from NOISE in one latent."""
    z = NOISE.repeat(count, 1)
    z[:, latent] = torch.linspace(-3, 3, count)
    return z


def cells_of(pixels, rows, columns):
    """The cells of the grid in the lower right corner: (rows, columns, 64, 64)."""
    end = -canvas.GAP - 1
    grid = pixels[end - 65 * rows : end, end - 65 * columns : end]
    return grid.reshape(rows, 65, columns, 65).transpose(0, 2, 1, 3)[:, :, 1:, 1:]


def texts_of(artists):
    return [artist.get_text() for artist in artists]


def test_traversal_rows_are_the_active_latents_as_the_decoder_draws_them(texts):
    picture = opened(latents.traversal(MODEL, REFERENCES, NATS, title="t", factor_names=NAMES))
    cells = cells_of(grey(picture), 2, 10)[..., 2:-2, 2:-2]  # without the frames of marks
    for row, latent in zip(cells, [1, 0], strict=True):  # most informative first
        expected = pixels(MODEL.decode(torch.cat([NOISE[None], moving(latent, 9)])))
        np.testing.assert_array_equal(row, expected[:, 2:-2, 2:-2])
    x, y = picture.width - canvas.GAP - 1 - 4 * 65, picture.height - canvas.GAP - 1 - 2 * 65
    assert picture.convert("RGB").getpixel((x + 32, y)) == canvas.BLUE  # 0.75 is nearest to 1
    assert picture.width <= 850
    assert texts[0] == "t (2 of 4 latents inactive)"
    assert "KL of each latent in nats" in texts[2]
    names = ["posY  z1  2.5 nats", "<posX>  z0  1.5 nats"]
    columns = ["reference", "-3", "-2.25", "-1.5", "-0.75", "0", "0.75", "1.5", "2.25", "3"]
    assert texts[3:] == ["image", *names, *columns, "noise", *names, *columns]


def test_a_category_takes_each_of_its_values(texts, monkeypatch):
    monkeypatch.setattr(MODEL, "category_sizes", {1: 3}, raising=False)
    latents.traversal(MODEL, REFERENCES, NATS, title="t")
    assert texts[4:6] == ["category z1  2.5 nats", "z0  1.5 nats"]
    moved = latents.sweep(MODEL, {"noise": NOISE}, NATS, None, 9)
    expected = NOISE.repeat(9, 1)
    expected[:, 1] = torch.tensor([0.0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert torch.equal(moved.cells[0, 0], MODEL.decode(expected))
    assert torch.equal(moved.cells[0, 1], MODEL.decode(moving(0, 9)))
    assert moved.nearest == [[3, 3]]  # of 1 among the categories, of -1 among the values


def test_the_best_latent_is_always_drawn_and_all_without_information(texts, monkeypatch):
    images = torch.cat([torch.zeros(256, 1, 8, 8), torch.ones(256, 1, 8, 8)])
    assert latents.measure(MODEL, images) == [0, 0.5, 1, 1.5]
    latents.traversal(MODEL, REFERENCES, [0.01, 0.03, 0, 0], title="t")
    assert texts[0] == "t (4 of 4 latents inactive)"
    assert texts[3:6] == ["image", "z1  0.0 nats", "reference"]
    texts.clear()
    monkeypatch.delattr(Stripes, "information")
    latents.traversal(MODEL, REFERENCES, latents.measure(MODEL, images), title="t")
    assert texts[0] == "t"
    assert texts[2:8] == ["image", "z0", "z1", "z2", "z3", "reference"]


def test_samples_are_the_draws_of_their_seed(texts):
    cells = cells_of(grey(opened(latents.samples(MODEL, NATS, seed=5, title="s"))), 9, 12)
    codes = MODEL.sample(108, torch.Generator().manual_seed(5))
    np.testing.assert_array_equal(cells.reshape(108, 64, 64), pixels(MODEL.decode(codes)))
    assert texts == ["s (2 of 4 latents inactive)"]


def test_reconstructions_stand_below_their_images(texts):
    x = MODEL.decode(torch.rand(20, 4))
    x[:, :, -1, -1] = 1  # the decoder will not draw this corner
    bands = torch.stack([x[10:], MODEL.decode(MODEL.encode(x[10:]))])
    picture = opened(latents.reconstructions({"decoded": MODEL}, x, title="r"))
    np.testing.assert_array_equal(cells_of(grey(picture), 2, 10), pixels(bands))
    assert texts == [*["image", "decoded"] * 2, "r"]


def test_model_traversals_stand_beside_each_other(texts):
    reference = MODEL.decode(torch.rand(1, 4))[0]
    latents.model_traversals({"a": (MODEL, [1, 0, 3, 0], None)}, reference, title="t")
    columns = ["z2\n3.0 nats", "z0\n1.0 nats"]  # the most informative first
    assert texts[:7] == ["image", "-3", "-1", "1", "3", *columns]
    assert (texts[7], texts[-1]) == ("a", "t")


def frames_of(data):
    """Grey levels of the frames of an endless GIF, and their pauses."""
    assert opened(data).info["loop"] == 0
    pages = ((grey(page), page.info["duration"]) for page in ImageSequence.Iterator(opened(data)))
    return zip(*pages, strict=True)


def test_traversal_gif_moves_there_and_back(texts):
    data = latents.traversal_gif(MODEL, REFERENCES, [1.5, 2.5, 1, 1], factor_names=NAMES)
    pages, pauses = frames_of(data)
    assert pauses == (100,) * 32
    assert all((pages[step] == pages[32 - step]).all() for step in range(1, 16))
    names = ["posY\nz1\n2.5 nats", "<posX>\nz0\n1.5 nats", "shape\nz2\n1.0 nats", "z3\n1.0 nats"]
    assert texts[1:9] == ["value of the latent: -3.0", *REFERENCES, "reference", *names]
    for step in range(17):
        codes = torch.stack([NOISE, *(moving(latent, 17)[step] for latent in (1, 0, 2, 3))])
        error = cells_of(pages[step], 2, 5)[1] - pixels(MODEL.decode(codes))
        assert np.abs(error).max() <= 8  # 32 shades


def test_training_gif_shows_steps_in_order_and_rests_on_the_last(texts):
    codes = {step: latents.fixed_noise(MODEL, 12) * step / 400 for step in (0, 100, 400)}
    frames = [(step, latents.frame(MODEL, z)) for step, z in codes.items()]
    pages, pauses = frames_of(latents.training_gif(frames, title="t"))
    assert pauses == (100, 100, 2500)
    assert texts == ["t", "step 0", "t", "step 100", "t", "step 400"]
    for picture, z in zip(pages, codes.values(), strict=True):
        assert np.abs(cells_of(picture, 1, 12)[0] - pixels(MODEL.decode(z))).max() <= 8
    latents.training_gif([(step, frames[0][1]) for step in range(451)], title="t")
    assert texts[-1] == "step 450"
    assert len(texts) == 6 + 2 * 151  # every third step


def panels_of(log, panels, patterns=charts.PANELS):
    """Title -> legend of each panel."""
    charts.log_curves(pd.DataFrame(log), title="t", panels=patterns)
    return {ax.get_title(loc="left"): texts_of(ax.get_legend().get_texts()) for ax in panels()}


def test_panels_follow_from_the_columns(panels):
    assert panels_of(VAE_LOG, panels) == {
        "Reconstruction error, nats per image, log scale": ["recon 4.20"],
        "KL divergence, nats per image": ["kl 2.00"],
        "KL of each latent, nats (1 below 0.05)": ["z1 1.20", "z2 0.80"],
    }
    raw, smooth = 500 / ROWS, panels()[0].lines[0].get_ydata()
    assert smooth[[60, 119]] == pytest.approx([raw[58:63].mean(), raw[-3:].mean()])
    gan = {"d_loss": 1, "cr": [None, 0.25], "mi": 1.5, "d_real": 0.7, "d_fake": 0.6}
    legends = [["d_loss 1.00", "cr 0.25"], ["mi 1.50"], ["d_real 0.70", "d_fake 0.60"]]
    assert list(panels_of(COUNTS | gan, panels).values()) == legends
    for terms, label in [({"loss": 4, "own": 20}, "own 20.00"), ({"loss": [5, 4]}, "loss 4.00")]:
        assert panels_of(COUNTS | terms, panels) == {"Other terms": [label]}
    scores = COUNTS | {"minutes": 3.0, "mig": [0, 0.3], "sap": [None, None]}
    assert panels_of(scores, panels, {"Score": ".+"}) == {"Score": ["mig 0.30"]}
    charts.log_curves(pd.DataFrame(COUNTS | {"kl_0": 0.01}), title="t")
    assert panels()[0].get_legend() is None
    with pytest.raises(ValueError, match="no numbers to draw"):
        charts.log_curves(pd.DataFrame(COUNTS), title="t")


def test_training_curves_are_means_with_bands(panels):
    logs = {"vae": [VAE_LOG, VAE_LOG.assign(recon=3.0)], "gan": [pd.DataFrame(COUNTS)]}
    charts.training_curves(logs, title="t")
    (line,), (band,) = panels()[0].lines, panels()[0].collections
    assert line.get_label() == "vae (n = 2)"
    np.testing.assert_allclose(line.get_ydata(), (500 / ROWS + 3) / 2)
    assert tuple(band.get_facecolor()[0][:3]) == line.get_color()


def test_matrix_rows_are_sorted_by_factor_then_strength(panels):
    charts.matrix(MATRIX, list("xys"), title="m", kind="nats")
    (ax,) = panels()
    assert texts_of(ax.get_yticklabels()) == ["z2", "z4", "z0", "z3", "z1"]
    cells = np.array(texts_of(ax.texts), dtype=float).reshape(5, 3)
    np.testing.assert_allclose(cells, MATRIX[[2, 4, 0, 3, 1]])
    assert charts.best_factors(MATRIX, list("xys")) == ["s", "", "x", "s", "mixed"]
    assert charts.best_factors(MATRIX[4:] - 0.1, list("xys")) == ["mixed"]
    assert charts.best_factors(np.array([[0.2, 0.3, 0.05]]), list("xys")) == ["y + x"]
    assert charts.best_factors(np.zeros((2, 3)), list("xys")) == ["", ""]
    frame = pd.DataFrame({"a": [1, 2, 3], "b": [1, 4, 9], "c": [3, 2, 1.5], "d": [1, 1, 1]})
    charts.rank_correlation(frame, dict(zip("abcd", "ABCD", strict=True)), title="t")
    assert texts_of(panels()[0].texts)[:4] == ["1.00", "1.00", "-1.00", "nan"]


def test_bars_show_ours_and_the_paper(panels):
    rows = {r"$\a$": (70.25, 1.5, 61.58, np.nan), "GAN": (50, np.nan, 73.5, 0.9)}
    charts.bars(rows, title="b", unit="%")
    (ax,) = panels()
    assert [bar.get_width() for bar in ax.patches] == [70.25, 50]
    assert texts_of(ax.get_yticklabels()) == [r"$\a$: 70.2 (paper 61.6)", "GAN: 50.0 (paper 73.5)"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first row is on top


def test_score_dots_are_sorted_by_the_first_mean(panels):
    frame = pd.DataFrame({"config": ["a", "a", "b", "c"], "mig": [0, 0.2, 0.6, None], "tc": 1.5})
    charts.score_dots(frame, {"mig": "MIG", "tc": "TC"}, title="t")
    mig, tc = panels()
    assert texts_of(mig.get_yticklabels()) == ["b", "a", "c"]
    assert texts_of(mig.texts) == ["0.60", "0.10"]
    assert texts_of(tc.texts) == ["1.50"] * 3
    np.testing.assert_array_equal(mig.lines[0].get_xydata()[:3], [[0, 1], [0.2, 1], [0.6, 0]])


def test_score_dots_mark_published_values_only_as_diamonds(panels):
    frame = pd.DataFrame({"config": ["a", "b"], "mig": [0.2, 0.6]})
    charts.score_dots(frame, {"mig": "MIG"}, title="t", published=["b"])
    dots, diamonds, bars = panels()[0].lines
    np.testing.assert_array_equal(dots.get_xydata(), [[0.2, 1]])
    np.testing.assert_array_equal(diamonds.get_xydata(), [[0.6, 0]])
    assert np.isnan(bars.get_xdata()).tolist() == [True, False]


@pytest.mark.parametrize(("channels", "size", "side"), [(1, 64, 64), (3, 28, 84), (1, 96, 96)])
def test_the_same_input_gives_the_same_small_bytes(channels, size, side):
    model = Stripes(5, channels, size, torch.bfloat16)
    z = latents.fixed_noise(model, 2)
    references, nats = {"image": model.decode(z)[0], "code": z[1]}, range(1, 6)

    def draw():
        yield latents.frame(model, z)
        yield latents.training_gif([(1, latents.frame(model, z))], title="t")
        yield latents.traversal_gif(model, references, nats)
        yield latents.traversal(model, references, nats, title="t")
        yield latents.samples(model, nats, seed=0, title="t")
        yield latents.reconstructions({"m": model}, model.decode(z), title="t")
        yield charts.log_curves(VAE_LOG, title="t")

    first = list(draw())
    assert first == list(draw())
    assert opened(first[0]).size == (2 * side + 3, side + 2)  # enlarged by a whole factor
    for data in first:
        assert opened(data).mode == "P"
        assert not {"Software", "Creation Time", "date:create"} & set(opened(data).info)
        assert len(data) < 200_000


def test_colour_images_keep_their_colours():
    images = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    shown = np.asarray(opened(canvas.to_png(canvas.mosaic(images))).convert("RGB"))
    expected = (images[1, 2].permute(1, 2, 0) * 255).round().byte().numpy()
    np.testing.assert_array_equal(shown[-65:-1, -65:-1], expected)


TABLE = page.Table("Scores", "a note", ["run", "MIG"], [["<b>a</b>", "0.1"]], ["a b/report.html"])
CONTENT = {"title": "t", "note": "n", "commands": ["python a"], "configuration": "a: <1>"}
CONTENT |= {"tables": [TABLE], "scores": TABLE, "facts": TABLE, "provenance": TABLE}


def test_a_page_is_one_small_file_that_needs_nothing_else():
    content = CONTENT | {"pictures": {"one": canvas.to_png(canvas.text("x"))}}
    study = page.render("study.html", **content).decode()
    run = page.run_page(MODEL, REFERENCES, NATS, factor_names=None, **content).decode()
    for text in (study, run):
        loads = re.findall(r"url\((.*?)\)|<(?:img|link|script)[^>]*(?:src|href)=\"(.*?)\"", text)
        assert all("".join(address).startswith("data:") for address in loads)
        assert not any(part in text for part in ("://", "@import", "<b>a"))
        assert '<a href="a b/report.html">&lt;b&gt;a&lt;/b&gt;</a>' in text
        assert "python a" in text
    assert study.index("<img") < study.index("<table")  # the charts are first


def test_a_slider_for_each_active_latent_over_frames_that_the_model_decodes():
    content = CONTENT | {"pictures": {}, "factor_names": NAMES}
    text = page.run_page(MODEL, REFERENCES, NATS, **content).decode()
    sliders = re.findall(r'<input type="range" min="0" max="(\d+)" value="(\d+)"', text)
    assert sliders == [("12", "4"), ("12", "10")]  # at the code of the first reference
    assert re.findall("<b>(.*?)</b>", text) == ["posY  z1  2.5 nats", "&lt;posX&gt;  z0  1.5 nats"]
    assert "Move a latent (2 of 4 latents inactive)" in text
    _, sprite = re.findall(r"\.sprite\d .*?base64,(.*?)\)", text)
    expected = [np.hstack(pixels(MODEL.decode(moving(latent, 13)))) for latent in (1, 0)]
    np.testing.assert_array_equal(grey(opened(base64.b64decode(sprite))), np.vstack(expected))
