"""Which operators a training step runs: what makes it fast, checked without a clock."""

import contextlib
import functools
from collections import Counter

import pytest
import torch
from conftest import CONFIGS
from torch.utils._python_dispatch import TorchDispatchMode

import runs
from benchmarks import speed
from models import build_model
from models.fast import accelerate
from models.vae import OPTIMIZERS

BATCH = 16
aten = torch.ops.aten
FUSED = torch.ops.mkldnn._convolution_pointwise, torch.ops.mkldnn._convolution_transpose_pointwise
MODELS = {
    "vae": ({"name": "vae"}, {"name": "beta_vae"}),
    "factor_vae": ({"name": "vae"}, {"name": "factor_vae"}),
    "broadcast_vae": ({"name": "vae", "network": "broadcast"}, {"name": "beta_vae"}),
    "affine_vae": ({"name": "vae", "network": "affine"}, {"name": "beta_vae"}),
    "seed": ({"name": "infogan", "network": "seed"}, None),
    "sn": ({"name": "infogan", "network": "sn"}, None),
    "broadcast": ({"name": "infogan", "network": "broadcast", "r1": 0.1, "r1_every": 8}, None),
}


class Recorder(TorchDispatchMode):
    """Every operator that runs within the context: (overload packet, arguments, result)."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((func.overloadpacket, args, result))
        return result

    def of(self, operator):
        return [args for name, args, _ in self.calls if name == operator]


def build(name):
    torch.manual_seed(0)
    model = accelerate(build_model((1, 64, 64), *MODELS[name], 100))
    return model.to(memory_format=torch.channels_last)


def images():
    return (torch.rand(BATCH, 1, 64, 64) < 0.05).float()


@functools.cache
def record(name):
    model, x = build(name), images()
    model.train_step(x, 0)
    with Recorder() as recorder:
        model.train_step(x, 1)
    return name, model, recorder


@pytest.fixture(params=MODELS)
def step(request):
    return record(request.param)


def test_kernels_that_are_slow_are_replaced(step):
    _, _, recorder = step
    assert not any(args[7] for args in recorder.of(aten.convolution_backward))  # transposed
    # layers of one channel are taken over blocks
    for operator, weight in ((aten.convolution, 1), (aten.convolution_backward, 2)):
        kernels = [args[weight] for args in recorder.of(operator)]
        assert min(kernel.shape[1] for kernel in kernels) >= 4
        few = [kernel for kernel in kernels if kernel.shape[1] == 4]
        assert few
        assert all(kernel.shape[2:] == (2, 2) for kernel in few)


def test_activations_behind_a_convolution_are_part_of_it(step):
    name, _, recorder = step
    counts = tuple(len(recorder.of(operator)) for operator in FUSED)
    # D of sn takes real and fake images in one batch, then G's; so does D of broadcast
    expected = {"vae": (4, 3), "factor_vae": (4, 3), "broadcast_vae": (6, 1), "affine_vae": (4, 2)}
    expected |= {"seed": (3, 0), "sn": (8, 3), "broadcast": (8, 0)}
    assert counts == expected[name]
    if "vae" in name:
        assert not [args for args in recorder.of(aten.relu_) if args[0].dim() == 4]


def test_the_convolutions_of_a_step():
    _, _, recorder = record("vae")
    # beside the fused ones: the input gradients of the decoder, whose last layer is a product
    assert [args[6] for args in recorder.of(aten.convolution)] == [False] * 4
    # encoder: three inputs and three weights; decoder: three weights. Those between 8x8 and 4x4
    # maps are products
    masks = [tuple(args[-1]) for args in recorder.of(aten.convolution_backward)]
    assert Counter(masks) == {(True, False, False): 3, (False, True, False): 6}
    assert not recorder.of(aten.binary_cross_entropy_with_logits)
    # in the step of sn, G's step takes no weight gradient of D: three of D's and three of G's
    _, _, recorder = record("sn")
    masks = [args[-1][1] for args in recorder.of(aten.convolution_backward)]
    assert Counter(masks) == {True: 6, False: 7}


def test_the_penalty_of_d_costs_one_gradient_more_of_each_weight():
    """And none by a convolution over the batch, whose kernels are as large as the maps."""
    model, x = build("broadcast"), images()
    z, weights = model.sample(BATCH), {}
    for penalise in (False, True):
        with Recorder() as recorder:
            model._step_d(x, x, z, penalise)
        weights[penalise] = sum(args[-1][1] for args in recorder.of(aten.convolution_backward))
        kernels = [args[1].shape[2] for args in recorder.of(aten.convolution)]
        assert max(kernels, default=0) <= 4
    # real and fake together; then both apart and the slope's own
    assert weights == {False: 3, True: 3 * 3}


def test_convolutions_to_small_maps_are_products():
    _, _, recorder = record("seed")
    shapes = [args[1].shape[:2] for args in recorder.of(aten.convolution)]
    assert not {(256, 256), (1, 256)} & set(shapes)  # the heads too
    masks = [args[-1] for args in recorder.of(aten.convolution_backward) if len(args[2]) == 256]
    assert masks == [[True, False, False]] * 3  # 14x14 to 6x6: the weight's is a product


def test_each_optimiser_is_one_fused_kernel(step):
    _, model, recorder = step
    counts = Counter(str(operator) for operator, _, _ in recorder.calls)
    assert counts["aten._fused_adam_"] == len(model.optimizers)
    assert not any("_foreach_addcdiv" in operator for operator in counts)


def test_maps_and_their_large_gradients_stay_channels_last(step):
    """In another memory format than its values, the gradient of an activation takes far longer."""
    name, _, recorder = step
    maps = [args[0] for args in recorder.of(aten.convolution) if args[0].shape[1] > 1]
    if name in ("vae", "sn", "broadcast"):
        gradients = recorder.of(aten.threshold_backward) + recorder.of(aten.leaky_relu_backward)
        maps += [x for args in gradients for x in args[:2] if x.dim() == 4]
    maps = [x for x in maps if x.shape[2] > 4]  # the 4x4 map of a decoder comes from a vector
    assert maps
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in maps)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_step_stays_on_its_device_and_reads_no_value(path, monkeypatch):
    """The device "meta" stands for a GPU: tensors of the CPU and reads of a value are errors."""
    adam, values = torch.optim.Adam, runs.resolve(path)
    monkeypatch.setattr(torch.optim, "Adam", lambda *a, fused, **k: adam(*a, foreach=False, **k))
    for name in OPTIMIZERS:  # torch's plain Adagrad reads a value, its fused one does not
        monkeypatch.setitem(OPTIMIZERS, name, torch.optim.Adam)
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: contextlib.nullcontext())
    with torch.device("meta"):
        model = accelerate(build_model((1, 64, 64), values["model"], values["objective"], 1000))
    x = torch.zeros(BATCH, 1, 64, 64, device="meta")
    terms = model.to("meta").train_step(x, 20_000)  # by now all has begun
    assert {term.device.type for term in terms.values()} == {"meta"}


@pytest.mark.parametrize("name", ["factor_vae", "seed", "broadcast"])
def test_the_yardstick_trains_the_same_networks_with_torchs_own_layers(name):
    model = build_model((1, 64, 64), *MODELS[name], 100)
    before = [p.detach().clone() for p in model.parameters()]
    plain = speed.plain_vae if "vae" in name else speed.plain_infogan
    with Recorder() as recorder:
        plain(model)(images())
    assert all((p != b).any() for p, b in zip(model.parameters(), before, strict=True))
    kernels = recorder.of(aten.convolution_backward)
    assert any(args[7] for args in kernels)  # transposed
    assert min(args[2].shape[1] for args in kernels) == 1  # images of one channel
