import pytest
import torch
import transformers
from helpers.models import state_hash

import weightinit as wi
from weightinit.errors import ProjectionError

CLASSES = {
    "BertModel": transformers.BertModel,
    "BertForSequenceClassification": transformers.BertForSequenceClassification,
    "BertForTokenClassification": transformers.BertForTokenClassification,
    "BertForMaskedLM": transformers.BertForMaskedLM,
}


def bert(width=24, depth=4, kind="BertModel", seed=0, **sizes):
    """A BERT with every parameter random, in fp64."""
    config = transformers.BertConfig(
        **{"num_attention_heads": width // 8, "intermediate_size": width * 3, **sizes},
        vocab_size=50, hidden_size=width, num_hidden_layers=depth, max_position_embeddings=16,
        num_labels=3,
    )  # fmt: skip
    model = CLASSES[kind](config).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.2 * noise + name.endswith("LayerNorm.weight"))
    return model


def sentences(number, seed):
    """Batches of random tokens, some of them padding."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 13, (number, 16, 1), generator=generator)
    return [
        {
            "input_ids": torch.randint(50, (16, 12), generator=generator),
            "attention_mask": (torch.arange(12) < length).long(),
        }
        for length in lengths
    ]


BATCHES, UNSEEN = sentences(6, 1), sentences(4, 2)


@torch.no_grad()
def says(model, batches):
    """What a model says of all tokens that are no padding, or of all sentences."""
    found = []
    for batch in batches:
        out, mask = model(**batch)[0], batch["attention_mask"].bool()
        found.append(out[mask] if out.dim() == 3 else out)
    return torch.cat(found)


def error(model, ancestor, batches=UNSEEN):
    """Error relative to the variance; streams of other widths are compared by least squares."""
    ours, theirs = says(model, batches), says(ancestor, batches)
    if isinstance(model, transformers.BertModel):
        ours = torch.cat([ours, torch.ones_like(ours[:, :1])], 1)
        ours = ours @ torch.linalg.lstsq(ours, theirs).solution
    return float((ours - theirs).square().mean() / theirs.var(0).mean())


@pytest.mark.parametrize("kind", CLASSES)
def test_at_full_size_the_function_is_the_ancestors(kind):
    ancestor, model = bert(kind=kind), bert(kind=kind, seed=3)
    wi.project_from(ancestor, model, method="activation", calibration=BATCHES)
    found = says(model, UNSEEN)
    torch.testing.assert_close(found, says(ancestor, UNSEEN), rtol=0, atol=1e-10)
    ancestor, model = ancestor.float(), bert(kind=kind, seed=3).float()
    wi.project_from(ancestor, model, method="activation", calibration=BATCHES)
    found = says(model, UNSEEN)
    torch.testing.assert_close(found, says(ancestor, UNSEEN), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["BertModel", "BertForSequenceClassification"])
@pytest.mark.parametrize("size", [(24, 2), (16, 4), (16, 2)])
def test_smaller_targets_do_what_their_ancestor_does(kind, size):
    ancestor, errors = bert(kind=kind), {}
    for method in ("activation", "subcloning"):
        model = bert(*size, kind, seed=3)
        wi.project_from(ancestor, model, method=method, calibration=BATCHES)
        errors[method] = error(model, ancestor), error(model, ancestor, BATCHES)
    for fitted, ranked in zip(*errors.values(), strict=True):
        assert fitted < 1
        assert fitted < 0.8 * ranked


@pytest.mark.parametrize("kind", ["BertForTokenClassification", "BertForMaskedLM"])
def test_heads_that_read_every_token_follow(kind):
    ancestor = bert(kind=kind)
    narrow = kind == "BertForTokenClassification"
    errors = []
    for method in ("activation", "subcloning"):
        model = bert(16 if narrow else 24, 3, kind, seed=3)
        wi.project_from(ancestor, model, method=method, calibration=BATCHES)
        errors.append(error(model, ancestor))
    assert errors[0] < 0.5 * errors[1]


def test_auto_takes_it_and_every_parameter_is_written():
    plan = wi.plan_projection(bert(), bert(16, 2, seed=3), calibration=BATCHES)
    report = plan.validate().report()
    assert any("picked ActivationAware" in note for note in report.notes)
    assert report.counts["fresh"] == 0


def test_what_padding_holds_does_not_matter():
    found = []
    for token in (0, 7):
        batches = [
            {**batch, "input_ids": batch["input_ids"].where(batch["attention_mask"].bool(), token)}
            for batch in BATCHES
        ]
        model = bert(16, 2, seed=3)
        wi.project_from(bert(), model, method="activation", calibration=batches)
        found.append(says(model, UNSEEN))
    torch.testing.assert_close(*found, rtol=0, atol=1e-8)


def test_a_narrow_stream_loses_nothing():
    """Where embeddings and blocks leave channels free, and all gains are equal, P drops those."""
    ancestor = bert(24, 2, intermediate_size=48)
    basis = torch.linalg.qr(torch.cat([torch.ones(24, 1), torch.eye(24)[:, :12]], 1).double()).Q
    with torch.no_grad():
        for name, parameter in ancestor.named_parameters():
            if name.endswith("LayerNorm.weight"):
                parameter.fill_(0.8)
            elif "embeddings" in name and parameter.dim() == 2:
                parameter.copy_(parameter @ basis @ basis.T)
            elif name.endswith(("output.dense.weight", "output.dense.bias", "LayerNorm.bias")):
                parameter.copy_(basis @ (basis.T @ parameter))
        for layer in ancestor.encoder.layer:
            layer.attention.output.dense.weight[:, 16:] = 0
    model = bert(16, 2, intermediate_size=48, seed=3)
    wi.project_from(ancestor, model, method="activation", calibration=BATCHES)
    assert error(model, ancestor) < 1e-3


@pytest.mark.parametrize(
    ("model", "batches", "words"),
    [
        (lambda: bert(16, 2, "BertForMaskedLM"), BATCHES, r"tied embed.* keep embed_dim = 24"),
        (lambda: bert(24, 5, "BertForMaskedLM"), BATCHES, "depth 4 -> 5: use method='auto'"),
        (lambda: bert(kind="BertForMaskedLM"), None, "pass a few unlabelled batches"),
        (
            lambda: bert(kind="BertForMaskedLM"),
            [{"input_ids": torch.zeros(2, 8, dtype=torch.int64)}],
            "holds 16 tokens.* 24 channels: pass more",
        ),
    ],
)
def test_what_does_not_fit_raises_and_leaves_the_target_alone(model, batches, words):
    model = model()
    before = state_hash(model)
    with pytest.raises(ProjectionError, match=words):
        wi.project_from(
            bert(kind="BertForMaskedLM"), model, method="activation", calibration=batches
        )
    assert state_hash(model) == before


def test_the_ancestor_is_not_changed():
    ancestor = bert().train()
    before = state_hash(ancestor)
    wi.project_from(ancestor, bert(16, 2), method="activation", calibration=BATCHES)
    assert state_hash(ancestor) == before
    assert ancestor.training


@pytest.mark.parametrize("sizes", [{}, {"vocab_size": 2}])
def test_sentences_that_are_all_alike_are_no_error(sizes):
    """The regressions have inputs that hardly vary, in single precision."""

    def small(width, depth):
        config = transformers.BertConfig(
            **{"vocab_size": 50, **sizes}, hidden_size=width, num_hidden_layers=depth,
            num_attention_heads=width // 16, intermediate_size=4 * width,
            max_position_embeddings=40,
        )  # fmt: skip
        return transformers.BertModel(config)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        ancestor, target = small(64, 3), small(32, 2)
    tokens = torch.arange(20) % ancestor.config.vocab_size
    wi.project_from(ancestor, target, calibration=[tokens.repeat(64, 1)])
    assert all(parameter.isfinite().all() for parameter in target.parameters())
