"""Which operators a training step runs: what makes it fast, checked without a clock."""

import contextlib
import functools
import multiprocessing
from collections import Counter

import pytest
import torch
import torch.utils.data
from conftest import CONFIGS
from torch.utils._python_dispatch import TorchDispatchMode

import train
from benchmarks.plain import plain_infogan, plain_vae
from benchmarks.train_speed import CASES, as_trained, build, count_flops
from data import ImageData, PackedImages
from models import build_model
from models.gan_networks import GAN_NETWORKS
from models.objectives import OBJECTIVES

BATCH = 16
aten = torch.ops.aten
FUSED = torch.ops.mkldnn._convolution_pointwise, torch.ops.mkldnn._convolution_transpose_pointwise


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
    "broadcast_vae": ({"name": "vae", "network": "broadcast"}, {"name": "beta_vae"}),
    "affine_vae": ({"name": "vae", "network": "affine"}, {"name": "beta_vae"}),
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


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_no_value_is_read_within_a_step(path):
    values = train.resolve(path, [])
    model = build_model((1, 64, 64), values["model"], values["objective"], 1000)
    x = (torch.rand(BATCH, 1, 64, 64) < 0.05).float()
    model.train_step(x, 0)
    with Recorder() as recorder:
        model.train_step(x, 20_000)  # by now all has begun
    assert not recorder.of(aten._local_scalar_dense)  # a GPU would be waited for


def test_no_gradient_comes_from_the_slow_kernels_of_transposed_convolutions(step):
    _, _, recorder = step
    backwards = recorder.of(aten.convolution_backward)
    assert backwards
    assert not any(args[7] for args in backwards)  # transposed


def test_layers_of_one_channel_are_taken_over_blocks(step):
    _, _, recorder = step
    for operator, weight in ((aten.convolution, 1), (aten.convolution_backward, 2)):
        kernels = [args[weight] for args in recorder.of(operator)]
        assert min(kernel.shape[1] for kernel in kernels) >= 4
        few = [kernel for kernel in kernels if kernel.shape[1] == 4]
        assert few
        assert all(kernel.shape[2:] == (2, 2) for kernel in few)


def test_activations_behind_a_convolution_are_part_of_it(step):
    name, _, recorder = step
    fused = {operator: len(recorder.of(operator)) for operator in FUSED}
    # D of sn sees real and fake images in one batch, then G's; D of broadcast is the same network
    expected = {"vae": (4, 3), "factor_vae": (4, 3), "broadcast_vae": (6, 1), "affine_vae": (4, 2)}
    expected |= {"seed": (3, 0), "sn": (8, 3)}
    assert tuple(fused.values()) == expected.get(name, (8, 0))
    if "vae" in name:
        assert not [args for args in recorder.of(aten.relu_) if args[0].dim() == 4]


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
    # beside the fused ones: the input gradients of the decoder, whose last layer is a product
    assert [args[6] for args in recorder.of(aten.convolution)] == [False] * 4
    # encoder: three inputs and three weights; decoder: three weights. Those between 8x8 and 4x4
    # maps are products
    wanted = [tuple(args[-1]) for args in recorder.of(aten.convolution_backward)]
    assert Counter(wanted) == {(True, False, False): 3, (False, True, False): 6}


def test_the_step_of_a_generator_takes_no_gradient_of_a_discriminators_weights():
    _, model, recorder = record("sn")
    # Weights: three of D's and three of G's, inputs: three of D's and then all four of D's.
    wanted = [args[-1][1] for args in recorder.of(aten.convolution_backward)]
    assert Counter(wanted) == {True: 6, False: 7}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_penalty_of_d_costs_one_gradient_more_of_each_weight():
    """And none by a convolution over the batch, whose kernels are as large as the maps."""
    model = build_model((1, 64, 64), *MODELS["broadcast"], 100).to(
        memory_format=torch.channels_last
    )
    x, z = (torch.rand(BATCH, 1, 64, 64) < 0.05).float(), model.sample(BATCH)
    weights = {}
    for penalise in (False, True):
        with Recorder() as recorder:
            model._step_d(x, x, z, penalise)
        weights[penalise] = sum(args[-1][1] for args in recorder.of(aten.convolution_backward))
        kernels = [args[1].shape[2] for args in recorder.of(aten.convolution)]
        assert max(kernels, default=0) <= 4
        batches = [len(args[0]) for args in recorder.of(FUSED[0])]
        assert batches == ([BATCH] * 8 if penalise else [2 * BATCH] * 4)
    # real and fake together; then both apart and the slope's own
    assert weights == {False: 3, True: 3 * 3}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.encode])
def test_the_benchmark_counts_the_operations_of_a_step(name):
    case = CASES[name]._replace(batch_size=4)
    packed = torch.randint(0, 256, (case.batch_size, 512), dtype=torch.uint8)
    data = ImageData("bits", PackedImages(packed), None, levels=1)
    model = as_trained(build(case), data.images.device)
    assert 1e6 < count_flops(model, data, case) < 1e10  # an image


def test_convolutions_to_small_maps_are_products():
    _, _, recorder = record("seed")
    for operator, weight in ((aten.convolution, 1), (aten.convolution_backward, 2)):
        calls = [args for args in recorder.of(operator) if args[weight].shape[:2] == (256, 256)]
        assert calls == []
    wanted = [args[-1] for args in recorder.of(aten.convolution_backward) if len(args[2]) == 256]
    assert wanted == [[True, False, False]] * 3  # 14x14 to 6x6: the weight's is a product


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
