"""Which operators a training step runs: what makes it fast, checked without a clock."""

import contextlib
import functools
import multiprocessing
from collections import Counter

import pytest
import torch
import torch.utils.data
from torch.utils._python_dispatch import TorchDispatchMode

import train
from benchmarks.plain import plain_infogan, plain_vae
from data import ImageData, PackedImages
from models import build_model
from models.gan_networks import GAN_NETWORKS
from models.objectives import OBJECTIVES

BATCH = 16
aten = torch.ops.aten


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


MODELS = {
    "vae": ({"name": "vae"}, {"name": "beta_vae"}),
    "factor_vae": ({"name": "vae"}, {"name": "factor_vae"}),
    "seed": ({"name": "infogan", "network": "seed"}, None),
    "sn": ({"name": "infogan", "network": "sn"}, None),
    "broadcast": ({"name": "infogan", "network": "broadcast", "r1": 0.1, "r1_every": 8}, None),
}


@functools.cache
def record(name):
    torch.manual_seed(0)
    model = build_model((1, 64, 64), *MODELS[name], 100)
    model = model.to(memory_format=torch.channels_last)
    x = (torch.rand(BATCH, 1, 64, 64) < 0.05).float()
    model.train_step(x, 0)
    with Recorder() as recorder:
        model.train_step(x, 1)
    return name, model, recorder


@pytest.fixture(params=MODELS)
def step(request):
    return record(request.param)


def test_no_gradient_comes_from_the_slow_kernels_of_transposed_convolutions(step):
    _, _, recorder = step
    backwards = recorder.of(aten.convolution_backward)
    assert backwards
    assert not any(args[7] for args in backwards)  # transposed


def test_layers_of_one_channel_are_matrix_products(step):
    _, _, recorder = step
    backwards = recorder.of(aten.convolution_backward)
    assert min(args[2].shape[1] for args in backwards) > 4  # weight (Cout, Cin, k, k)
    transposed = [args for args in recorder.of(aten.convolution) if args[6]]
    assert transposed
    assert min(args[1].shape[1] for args in transposed) > 4  # weight (Cin, Cout, 4, 4)


@pytest.mark.parametrize("name", ["vae", "seed", "sn", "broadcast"])
def test_the_yardstick_runs_the_same_networks_with_torchs_own_layers(name):
    model = build_model((1, 64, 64), *MODELS[name], 100)
    step = (plain_vae if name == "vae" else plain_infogan)(model)
    x = (torch.rand(BATCH, 1, 64, 64) < 0.05).float()
    with Recorder() as recorder:
        step(x)
    kernels = recorder.of(aten.convolution_backward)
    assert any(args[7] for args in kernels)  # transposed
    assert min(args[2].shape[1] for args in kernels) == 1  # images of one channel


def test_the_convolutions_of_a_vae_step():
    _, _, recorder = record("vae")
    forward = Counter("up" if args[6] else "down" for args in recorder.of(aten.convolution))
    # 4 of the encoder, 4 input gradients of the decoder; 3 of the decoder, whose last is a product
    assert forward == {"down": 8, "up": 3}
    # one a layer; the layers of one channel, first and last, take products instead
    assert len(recorder.of(aten.convolution_backward)) == 6


def test_each_optimiser_is_one_fused_kernel_and_nothing_waits_for_the_device(step):
    name, model, recorder = step
    steps = Counter(str(operator) for operator, _, _ in recorder.calls)
    assert steps["aten._fused_adam_"] == len(model.optimizers)
    assert not any("_foreach_addcdiv" in operator for operator in steps)
    assert steps["aten._local_scalar_dense"] == 0
    if name == "vae":
        assert steps["aten.binary_cross_entropy_with_logits"] == 0


def test_activations_stay_channels_last(step):
    _, _, recorder = step
    maps = [args[0] for args in recorder.of(aten.convolution) if args[0].shape[1] > 1]
    maps = [x for x in maps if x.shape[2] > 4]  # the 4x4 map of a decoder comes from a vector
    assert maps
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in maps)


@pytest.mark.parametrize("name", ["vae", "sn", "broadcast"])
def test_large_gradients_of_activations_stay_channels_last(name):
    """In another memory format than its values an activation's gradient takes far longer."""
    _, _, recorder = record(name)
    operators = (aten.threshold_backward, aten.leaky_relu_backward)
    pairs = [args[:2] for operator in operators for args in recorder.of(operator)]
    large = [pair for pair in pairs if pair[0].dim() == 4 and pair[0].shape[2] > 4]
    assert large
    for pair in large:
        assert all(x.is_contiguous(memory_format=torch.channels_last) for x in pair)


@pytest.mark.parametrize("name", [*OBJECTIVES, *GAN_NETWORKS])
def test_a_step_stays_on_its_device_and_reads_nothing_back(name, monkeypatch):
    """The device "meta" stands for a GPU: tensors of the CPU and reads of a value are errors."""
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *a, fused, **k: adam(*a, foreach=False, **k))
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *a: False)
    gan = {"name": "infogan", "network": name, "categorical": (3,), "cr_weight": 1.0}
    gan |= {"r1": 1.0, "r1_every": 3}
    chosen = ({"name": "vae"}, {"name": name}) if name in OBJECTIVES else (gan, None)
    with torch.device("meta"):
        model = build_model((1, 64, 64), *chosen, 1000)
    terms = model.to("meta").train_step(torch.zeros(BATCH, 1, 64, 64, device="meta"), 3)
    assert {term.device.type for term in terms.values()} == {"meta"}


def test_a_batch_unpacks_its_own_bits_and_no_more():
    packed = torch.randint(0, 256, (5000, 512), dtype=torch.uint8)
    data = ImageData("bits", PackedImages(packed), None, levels=1)
    with Recorder() as recorder:
        x = data.batch(torch.randint(5000, (BATCH,)))
    largest = max(r.nbytes for _, _, r in recorder.calls if isinstance(r, torch.Tensor))
    assert largest == x.nbytes == BATCH * 4096 * 4
    assert data.images.packed.data_ptr() == packed.data_ptr()


def test_training_starts_no_worker_and_no_data_loader(command, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a worker process or a data loader")

    monkeypatch.setattr(torch.utils.data.DataLoader, "__init__", refuse)
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
    assert train.main(command("config/twoD.yaml")) == 0
