"""Which start for a model: on digits, with one of every kind of start, and with bad input."""

import json

import pytest
import timm
import torch
from helpers.models import make_bundle, vit
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import weightinit as wi
from weightinit.comparison.starts import named_starts

SIZE = {
    "img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10, "class_token": False,
    "global_pool": "avg", "fc_norm": False,
}  # fmt: skip


def digits_vit(**changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        size = {"embed_dim": 32, "num_heads": 2, "depth": 3, **SIZE, **changes}
        return timm.create_model("vit_tiny_patch16_224", **size)


@pytest.fixture(scope="module")
def digits():
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
    images = (images - images.mean()) / images.std()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return TensorDataset(images[order][:240], torch.tensor(found.target)[order][:240])


@pytest.fixture
def batches(digits):
    return list(DataLoader(digits, batch_size=24))


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_every_kind_of_start(batches, tmp_path, global_generator):
    model, ancestor = digits_vit(), digits_vit(depth=4, embed_dim=48, num_heads=3)
    wi.init_from_templates(ancestor, "digits-w32", scalers="interpolate")
    before, mode = state(model), model.training
    bundle = wi.TemplateBundle.from_pretrained("digits-w32")
    bundle.save_pretrained(tmp_path / "bundle")

    def filled(module):
        nn.init.zeros_(module.head.weight)

    found = wi.compare(
        model,
        {
            "random": "random",
            "built in": "digits-w32",
            "object": bundle,
            "folder": tmp_path / "bundle",
            "mimetic": "mimetic",
            "method": "weight_selection",
            "its object": wi.WeightSelection(),
            "on data": wi.ActivationAware(),
            "ancestor": ancestor,
            "pair": (ancestor, "bot"),
            "function": filled,
        },
        batches,
        ancestor=ancestor,
        steps=2,
        lrs=(1e-3,),
    )  # fmt: skip
    rows = {row.name: row for row in found.rows}
    assert not [row.error for row in found.rows if row.error]
    assert found.best is found.rows[0] and found.best.trained.accuracy > 85
    assert rows["built in"].at_once.accuracy > 90 > 40 > rows["random"].at_once.accuracy
    assert rows["object"].trained == rows["folder"].trained == rows["built in"].trained
    assert any("same weights as built in" in note for note in rows["object"].notes)
    assert rows["its object"].trained == rows["method"].trained
    assert rows["on data"].at_once.accuracy > 80 and "ActivationAware" in rows["on data"].source
    assert rows["function"].source == "filled()"
    assert found.examples == 48
    assert model.training is mode
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_says_the_same_again_and_another_seed_another(digits):
    """A loader that shuffles by the global generator has one order, that of the seed."""

    def once(seed):
        loader = DataLoader(digits, batch_size=24, shuffle=True)
        return wi.compare(
            digits_vit(num_classes=11, proj_drop_rate=0.1),
            ["digits-w32", "random"],
            loader,
            steps=3,
            lrs=[1e-3],
            generator=torch.Generator().manual_seed(seed),
        ).to_dict()

    first = once(0)
    assert first == once(0) != once(1)
    assert first["rows"][0]["name"] == "digits-w32"


def test_the_best_rate_counts_and_an_edge_is_noted(batches):
    model = digits_vit(num_classes=11)  # a fresh head, which the lower rate leaves fresh
    found = wi.compare(model, ["digits-w32"], batches, steps=5, lrs=(1e-6, 1e-3))
    assert found.best.lr == 1e-3
    assert found.best.trained == dict(found.best.rates)[1e-3] != dict(found.best.rates)[1e-6]
    assert "note: best at the highest rate of lrs=: digits-w32. Try higher ones" in str(found)


def test_text_file_and_plot(batches, tmp_path):
    found = wi.compare(
        digits_vit(), ["random", "digits-w32", "cifar10-w64"], batches, steps=2, lrs=[1e-3]
    )
    text = str(found)
    assert text.startswith("Accuracy in percent (loss) on 48 held-out examples; standard error")
    assert "templates digits-w32" in text and "2 steps" in text
    found.save(tmp_path / "found.json")
    saved = json.loads((tmp_path / "found.json").read_text())
    assert saved == json.loads(json.dumps(found.to_dict())) and saved["best"] == "digits-w32"
    assert saved["rows"][0]["rates"][0]["lr"] == 1e-3
    axes = found.plot().axes[0]
    assert axes.containers[0][0].get_width() == found.best.at_once.accuracy


def test_nothing_given_tries_what_ships_and_methods_of_the_ancestor(batches):
    ancestor = wi.init_from_templates(digits_vit(depth=4), "digits-w32")
    found = wi.compare(digits_vit(), None, batches[:4], ancestor=ancestor, steps=0)
    rows = {row.name: row for row in found.rows}
    assert {"random", "mimetic", "digits-w32", "cifar10-w64", "auto", "lemon"} <= set(rows)
    assert {"logah-cifar10", "pith-cifar10"} <= set(rows) and not {"ligo", "pith"} & set(rows)
    assert rows["auto"].at_once.accuracy > 60 and rows["auto"].trained is None
    assert "does not apply" in rows["lemon"].error and found.rows[-1].error
    assert "lemon: does not apply" in str(found) and "steps" not in str(found).splitlines()[1]
    assert set(named_starts(None, False)) == set(rows) - set(wi.list_methods())


def test_the_rest_goes_on(batches):
    def broken(module):
        raise KeyError("gone")

    def other(module):
        return digits_vit()

    def not_finite(module):
        nn.init.constant_(module.head.weight, torch.inf)

    starts = {"broken": broken, "other": other, "not finite": not_finite, "random": "random"}
    starts |= {"no such": "no_such_thing", "near": "digit-w32", "method": "lemon"}
    starts |= {"other family": timm.create_model("convnext_atto", depths=(1, 1, 1, 1))}
    found = wi.compare(digits_vit(), starts, batches, steps=1)
    rows = {row.name: row for row in found.rows}
    assert found.best.name == "random" and not found.best.error
    assert "KeyError: 'gone'" in rows["broken"].error
    assert "another model" in rows["other"].error
    assert "not finite at every rate" in rows["not finite"].error
    assert "no_such_thing" in rows["no such"].error
    assert "did you mean 'digits-w32'" in rows["near"].error
    assert "pass ancestor=" in rows["method"].error
    assert rows["other family"].error
    assert json.dumps(found.to_dict(), allow_nan=False)


def test_an_ancestor_that_does_not_take_the_batches_is_used_without_them(batches):
    ancestor = digits_vit(img_size=16, depth=4)
    found = wi.compare(digits_vit(), {"large": ancestor}, batches, steps=1, lrs=[1e-3])
    assert any("without calibration" in note for note in found.best.notes)
    images = [torch.randn(8, 1, 16, 16)]
    found = wi.compare(
        digits_vit(embed_dim=16, num_heads=1), {"large": ancestor}, batches, steps=0,
        calibration=images,
    )  # fmt: skip
    assert not any("without calibration" in note for note in found.best.notes)
    found = wi.compare(
        digits_vit(embed_dim=16, num_heads=1), {"large": ancestor}, batches, steps=0,
        calibration="none",
    )  # fmt: skip
    assert not found.best.error and not found.best.notes


def test_a_meta_model_has_no_weights_of_its_own(batches):
    with torch.device("meta"):
        model = digits_vit()
    found = wi.compare(model, ["random", "digits-w32"], batches, steps=1)
    assert [row.name for row in found.rows if not row.error] == ["digits-w32"]
    assert "build it on the CPU" in found.rows[1].error
    assert all(parameter.is_meta for parameter in model.parameters())


class Classifier(nn.Module):
    """As Hugging Face's: named inputs, and an output that has logits."""

    def __init__(self):
        super().__init__()
        self.vit = vit()

    def forward(self, pixel_values):
        return type("Output", (), {"logits": self.vit(pixel_values)})


def test_dicts_and_outputs_with_logits():
    batches = [
        {"pixel_values": torch.randn(6, 1, 8, 8), "labels": torch.arange(6) % 5} for _ in range(2)
    ]

    def filled(module):
        wi.init_from_templates(module.vit, make_bundle())

    found = wi.compare(Classifier(), {"random": "random", "ours": filled}, batches, steps=2)
    assert not [row.error for row in found.rows if row.error]
    assert all(row.trained.accuracy is not None for row in found.rows)


def test_a_loss_of_ones_own_and_labels_that_are_no_classes():
    batches = [(torch.randn(4, 1, 8, 8), torch.randn(4, 5)) for _ in range(3)]

    def loss(out, wanted):
        return (out - wanted).square().mean()

    found = wi.compare(
        vit(), ["random"], batches, val=[(torch.randn(4, 1, 8, 8), torch.randn(4))],
        loss=lambda out, wanted: out.mean() ** 2, steps=1,
    )  # fmt: skip
    assert found.best.trained.accuracy is None and str(found).startswith("Loss on 4 held-out")
    assert found.plot().axes[0].get_xlabel() == "held-out loss"
    assert wi.compare(vit(), ["random"], batches, loss=loss, steps=1).best.trained.loss > 0


IMAGES = torch.zeros(4, 1, 8, 8)
LABELS = torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize(
    ("batches", "match"),
    [
        ([IMAGES, IMAGES], "without labels"),
        ([(IMAGES, None)] * 2, "without labels"),
        ([{"x": IMAGES}] * 2, "without labels"),
        ([], "holds no batches"),
        (IMAGES, "is a Tensor"),
        (7, "is a int"),
        ([(IMAGES, LABELS)], "one batch"),
        ([(IMAGES[:0], LABELS[:0])] * 2, "holds no examples"),
        ([(IMAGES, LABELS * 0 + 3)] * 3, "all labels of batches are 3"),
        ([(IMAGES, LABELS), (IMAGES, LABELS * 0)], "held-out part"),
        ([(IMAGES, LABELS * 0 - 100)] * 3, "all labels are -100"),
        ([(IMAGES, LABELS + 3)] * 2, "label 5 is outside of the model's 5 classes"),
        ([(IMAGES, LABELS - 2)] * 2, "label -2 is outside"),
        ([(torch.zeros(4, 3, 8, 8), LABELS)] * 2, "does not run on a batch"),
        ([(IMAGES, torch.zeros(4, 5, 5))] * 2, "does not run on a batch"),
    ],
)
def test_bad_data_is_said_before_any_work(batches, match):
    with pytest.raises(wi.WeightInitError, match=match):
        wi.compare(vit(), ["random"], batches, steps=2)


@pytest.mark.parametrize(
    ("candidates", "options", "match"),
    [
        ([], {}, "candidates= is empty"),
        ("random", {}, "pass a list"),
        (["random", "random"], {}, "two of the name 'random'"),
        ([wi.LEMON()], {}, "pass ancestor="),
        ([lambda m: 1 / 0], {}, "no start could be compared"),
        (["random"], {"steps": -1}, "steps=-1"),
        (["random"], {"steps": 1.5}, "steps=1.5"),
        (["random"], {"lrs": []}, "rates above 0"),
        (["random"], {"lrs": [0]}, "rates above 0"),
        (["random"], {"lrs": float("inf")}, "rates above 0"),
        (["random"], {"generator": 3}, "pass a torch.Generator"),
        (["random"], {"ancestor": "no_such"}, "no ancestor 'no_such'"),
        (["random"], {"val": []}, "val= holds no batches"),
    ],
)
def test_bad_arguments(candidates, options, match):
    batches = [(torch.randn(4, 1, 8, 8), LABELS)] * 2
    with pytest.raises(wi.WeightInitError, match=match):
        wi.compare(vit(), candidates, batches, **{"steps": 1, **options})


def test_what_does_not_fit_into_memory_is_said(monkeypatch):
    monkeypatch.setattr("weightinit.comparison.examples.MOST_BYTES", 2500)

    def endless():
        while True:
            yield torch.randn(4, 1, 8, 8), LABELS

    with pytest.warns(UserWarning, match="only its first 2 batches"):
        found = wi.compare(vit(), ["random"], endless(), steps=5)
    assert found.examples == 4


def test_labels_of_any_width_count_and_batches_without_any_do_not():
    batches = [(torch.randn(4, 1, 8, 8), LABELS) for _ in range(6)]
    plain = wi.compare(vit(), ["random"], batches, steps=2, lrs=1e-3).best
    narrow = [(images, labels.int()) for images, labels in batches]
    ignored = (batches[0][0], LABELS * 0 - 100)
    for others in (narrow, [*batches[:4], ignored, ignored, *batches[4:]]):
        found = wi.compare(vit(), ["random"], others, steps=2, lrs=[1e-3]).best
        assert found.trained.accuracy is not None and torch.isfinite(
            torch.tensor(found.trained.loss)
        )
    assert wi.compare(vit(), ["random"], narrow, steps=2, lrs=[1e-3]).best.trained == plain.trained


def test_a_loss_is_the_mean_over_the_labels_that_count():
    images, half = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, -100, -100])
    train = [(images, LABELS)] * 2
    several = wi.compare(vit(), ["random"], train, val=[(images, half), (images, LABELS)], steps=0)
    parts = [(images[:2], half[:2]), (images, LABELS)]
    apart = wi.compare(vit(), ["random"], train, val=parts, steps=0)
    assert several.best.at_once.loss == pytest.approx(apart.best.at_once.loss)


def test_a_frozen_model_is_turned_away():
    model = vit().requires_grad_(False)
    batches = [(torch.randn(4, 1, 8, 8), LABELS)] * 3
    with pytest.raises(wi.WeightInitError, match="requires a gradient"):
        wi.compare(model, ["random"], batches, steps=1)
    assert wi.compare(model, ["random"], batches, steps=0).best.at_once.loss > 0


def test_starts_that_differ_in_buffers_alone_are_told_apart():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 4))

    def narrow(module):
        module[0].running_var.fill_(1e-2)

    batches = [(torch.randn(4, 1, 8, 8), LABELS)] * 3
    rows = wi.compare(model, ["random", narrow], batches, steps=0).rows
    assert rows[0].at_once.loss != rows[1].at_once.loss


def test_a_function_draws_the_same_again_and_leaves_the_global_generator(global_generator):
    def drawn(module):
        nn.init.normal_(module.head.weight)

    batches = [(torch.ones(4, 1, 8, 8), LABELS)] * 3
    once, again = (wi.compare(vit(), [drawn], batches, steps=0).best for _ in range(2))
    assert once.at_once == again.at_once
