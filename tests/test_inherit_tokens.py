import pytest
import torch
import transformers
from helpers.inherit import Stub, small_vit
from torch import nn

import weightinit as wi
from weightinit.inherit.tokens import token_batches


def bert(width=16, depth=3, **sizes):
    config = transformers.BertConfig(
        **{"vocab_size": 40, "max_position_embeddings": 12, **sizes},
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=width // 8,
        intermediate_size=2 * width,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.BertModel(config).eval()


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=3,
        eos_token_id=4,
    )  # fmt: skip
    return transformers.GPT2Model(config).eval()


def test_tokens_are_of_the_vocabulary_and_fit_the_positions():
    batches, text = token_batches(Stub(bert()), seed=0)
    tokens = torch.cat(batches)
    assert tokens.shape == (64, 12) and tokens.dtype == torch.int64
    assert set(tokens.unique().tolist()) == set(range(1, 40))  # 0 is the padding
    assert text == "64 sequences of 12 tokens drawn evenly from its vocabulary"


def test_special_tokens_stand_where_they_belong():
    tokens = torch.cat(token_batches(Stub(gpt2()), seed=0)[0])
    assert tokens.shape == (64, 32)
    assert (tokens[:, 0] == 3).all() and (tokens[:, -1] == 4).all()
    assert not torch.isin(tokens[:, 1:-1], torch.tensor([3, 4])).any()


def test_there_are_several_tokens_for_each_channel():
    batches, _ = token_batches(Stub(bert(width=256)), seed=0)
    assert sum(batch.numel() for batch in batches) >= 16 * 256
    assert max(len(batch) for batch in batches) == 64


def test_a_seed_means_the_same_tokens():
    first, again, other = (torch.cat(token_batches(Stub(bert()), seed=s)[0]) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_global_generator_is_not_touched():
    source, state = Stub(bert()), torch.get_rng_state()
    token_batches(source, seed=0)
    assert torch.equal(state, torch.get_rng_state())


def test_what_reads_no_tokens_has_none():
    text = "it takes neither images of one size nor tokens of a vocabulary"
    assert token_batches(Stub(small_vit()), seed=0) == (None, text)


def test_bare_weights_cannot_be_run():
    source = wi.Ancestor.open({k: v.clone() for k, v in bert().state_dict().items()}, heads=2)
    batches, text = token_batches(source, seed=0)
    assert batches is None and text


@pytest.mark.parametrize("build", [bert, gpt2])
def test_the_ancestor_takes_them(build):
    model: nn.Module = build()
    batches, _ = token_batches(Stub(model), seed=0)
    with torch.no_grad():
        assert torch.isfinite(model(batches[0]).last_hidden_state).all()


def test_a_target_is_fitted_to_them():
    ancestor, model = bert(24), bert(16, 2)
    batches, _ = token_batches(Stub(ancestor), seed=0)
    plan = wi.plan_projection(ancestor, model, calibration=batches)
    assert any("picked ActivationAware" in note for note in plan.report().notes)
    plan.commit()


def test_a_vocabulary_of_special_tokens_has_none():
    batches, text = token_batches(Stub(bert(vocab_size=1)), seed=0)
    assert batches is None and text == "its vocabulary has special tokens only"


def test_a_token_that_no_table_holds_is_no_special_one():
    batches, _ = token_batches(Stub(bert(bos_token_id=-1, eos_token_id=40)), seed=0)
    assert 0 <= int(torch.cat(batches).min()) and int(torch.cat(batches).max()) < 40
