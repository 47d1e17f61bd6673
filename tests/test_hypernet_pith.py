"""What is given beside a model: networks, tasks and ancestors, sound or not."""

import contextlib
import weakref

import pytest
import torch
from helpers.hypernet_reference import hypernet, task_of
from helpers.models import state_hash, vit

import weightinit as wi
from weightinit.errors import BundleError, ProjectionError
from weightinit.hypernet.files import HyperNetwork
from weightinit.inherit.running import captured

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def colour(**changes):
    return vit(in_chans=3, **changes)


def ancestor():
    return colour(embed_dim=12, num_heads=2)


def embedded(net, task):
    return wi.init_from_hypernet(colour(), net, task=task, ancestor=ancestor())


@pytest.mark.parametrize(
    "task",
    [
        IMAGES,
        [IMAGES[:2], IMAGES[2:]],
        [(IMAGES, torch.zeros(6))],
        [[IMAGES[:5], torch.zeros(5)], (IMAGES[5:],)],
        {"x": IMAGES},
        [{"x": IMAGES[:4], "labels": torch.zeros(4)}, {"x": IMAGES[4:]}],
        iter(IMAGES.split(4)),
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(IMAGES), 4),
        IMAGES.double(),
    ],
    ids=["batch", "batches", "pairs", "lists", "dict", "dicts", "iterator", "loader", "double"],
)
def test_images_of_a_task_come_as_calibration_does(task):
    net, old = hypernet("tal"), ancestor()
    with torch.no_grad(), captured(old) as found:
        old(IMAGES)
    wanted = wi.init_from_hypernet(colour(), net, task=found[0].mean(0))
    for a, b in zip(wanted.parameters(), embedded(net, task).parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_long_task_is_not_held_at_once():
    """It may be all images of a training set: one batch after another."""
    made, alive = [], []

    def batches():
        for _ in range(4):
            batch = IMAGES.clone()
            made.append(weakref.ref(batch))
            alive.append(sum(reference() is not None for reference in made))
            yield batch

    embedded(hypernet("tal"), batches())
    assert max(alive) <= 2


BAD = {
    "nothing": (None, "needs a task: pass task="),
    "number": (5, "task= is a int: pass an embedding"),
    "text": ("cifar10", "task= is a str"),
    "texts": (["a"], r"batch 0 of task= \(.* is a str: pass tensors"),
    "none": ([IMAGES, None], r"batch 1 of task= .*NoneType"),
    "keys": ([{"pixels": IMAGES}], r"batch 0 .*\['pixels'\]"),
    "empty": ([], "holds no images"),
    "no images": (IMAGES[:0], "is empty: leave it out"),
    "no numbers": (torch.zeros(0), r"shape \(0,\): use one of \(12,\)"),
    "other length": (torch.zeros(13), r"shape \(13,\): use one of \(12,\)"),
    "a row": (torch.zeros(1, 12), "does not run on batch 0"),
    "one image": (IMAGES[0], "does not run on batch 0"),
    "other size": (IMAGES[..., :5], "does not run on batch 0"),
    "other channels": (IMAGES[:, :1], "does not run on batch 0"),
    "bytes": (IMAGES.byte(), "does not run on batch 0"),
    "meta images": (IMAGES.to("meta"), "does not run on batch 0"),
    "meta": (torch.zeros(12, device="meta"), "not finite, or none"),
    "sparse": (torch.zeros(12).to_sparse(), "not finite, or none"),
    "complex": (torch.zeros(12, dtype=torch.complex64), "not finite, or none"),
    "nan": (torch.full((12,), torch.nan), "not finite"),
    "nan images": (IMAGES * torch.nan, "not finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_unsound_task_is_refused_by_what_to_do(name):
    task, words = BAD[name]
    model = colour()
    before = state_hash(model)
    with pytest.raises(ProjectionError, match=words):
        wi.init_from_hypernet(model, hypernet("tal"), task=task, ancestor=ancestor())
    assert state_hash(model) == before


def test_images_need_an_ancestor():
    with pytest.raises(ProjectionError, match="pass ancestor=, or the embedding"):
        wi.init_from_hypernet(colour(), hypernet("tal"), task=IMAGES)


@pytest.mark.parametrize("task", [torch.zeros(0), torch.ones(12), IMAGES, [IMAGES], 5])
@pytest.mark.parametrize("kind", ["ghn3", "logah"])
def test_most_hypernetworks_take_no_task(kind, task):
    with pytest.raises(ProjectionError, match="takes none of a task: leave task= out"):
        wi.init_from_hypernet(colour(), hypernet(kind), task=task, ancestor=ancestor())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tasks_networks_and_ancestors_of_any_dtype(dtype):
    net, old = hypernet("tal"), ancestor()
    plain = embedded(net, task_of(net))
    other = embedded(net, task_of(net).to(dtype))
    assert next(other.parameters()).dtype == torch.float32
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-2, rtol=2e-2)
    assert wi.init_from_hypernet(colour(), net, task=IMAGES, ancestor=old.to(dtype))


@pytest.mark.parametrize("given", [None, 5, "", torch.nn.Linear(2, 2), "digits-w32"])
def test_what_is_no_hypernetwork_is_named(given):
    with pytest.raises(BundleError, match=r"names no bundle|another bundle"):
        wi.init_from_hypernet(colour(), given)


def test_a_network_without_weights():
    with pytest.raises(ProjectionError, match="give it weights first"):
        wi.init_from_hypernet(colour(), hypernet().to("meta"))
    with pytest.raises(ProjectionError, match="faithful='no': use True, False, or None"):
        wi.init_from_hypernet(colour(), hypernet(), faithful="no")


def test_the_pith_that_ships_says_that_no_released_code_does_so():
    changes = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "num_heads": 4}
    old, new = colour(**changes), colour(**changes)
    plan = wi.plan_projection(old, new, method=wi.PITH(faithful=True))
    assert "faithful=True changes little" in str(plan.report())


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def precision(name):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


CONTEXTS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "float64": lambda: default_dtype(torch.float64),
    "meta": lambda: torch.device("meta"),
    "medium": lambda: precision("medium"),
    "inference": lambda: torch.inference_mode(),
}
CALLS = {
    "ghn3": {},
    "logah": {},
    "logah, faithful": {"faithful": True},
    "tal": {"task": IMAGES},
    "pith": {},
    "pith, faithful": {"faithful": True},
    "pith, rule": {"start": "rule"},
    "shipped": {},
}


@pytest.mark.parametrize("call", CALLS)
def test_a_prediction_is_the_same_wherever_it_is_made(call, tmp_path):
    """Whatever the defaults of dtype, device and precision are, and also of a bundle."""
    kind, options = call.partition(",")[0], dict(CALLS[call])
    changes = {"class_token": True, "global_pool": "token"}
    where = "logah-cifar10"
    if call != "shipped":
        start = {"start": options.pop("start")} if "start" in options else {}
        HyperNetwork.of(hypernet(kind, **start)).save_pretrained(tmp_path / "net")
        where = tmp_path / "net"
    old = colour(embed_dim=12, num_heads=2, **changes) if kind in ("pith", "tal") else None
    plain = wi.init_from_hypernet(colour(**changes), where, ancestor=old, **options)
    for name, context in CONTEXTS.items():
        model = colour(**changes)
        with context():
            wi.init_from_hypernet(model, where, ancestor=old, **options)
        for key, value in model.named_parameters():
            assert torch.equal(value, plain.get_parameter(key)), (name, key)
