import copy
import json
import pickle

import pytest
import timm
import torch
import transformers
from torch import nn

from weightinit import AnatomyError
from weightinit.anatomy import anatomy


def tiny(**changes):
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3}
    return timm.models.VisionTransformer(**(sizes | {"num_classes": 5} | changes))


def on_meta(name, **changes):
    with torch.device("meta"):
        return timm.create_model(name, **changes)


def test_canonical_names_of_a_block():
    seen = anatomy(tiny(init_values=1.0, qk_norm=True))
    sizes = {role: piece.size for role, piece in seen.blocks[1].items()}
    assert sizes == {
        "norm1.weight": (12,),
        "norm1.bias": (12,),
        "attn.q.weight": (12, 12),
        "attn.k.weight": (12, 12),
        "attn.v.weight": (12, 12),
        "attn.q_norm.weight": (4,),
        "attn.q_norm.bias": (4,),
        "attn.k_norm.weight": (4,),
        "attn.k_norm.bias": (4,),
        "attn.q.bias": (12,),
        "attn.k.bias": (12,),
        "attn.v.bias": (12,),
        "attn.proj.weight": (12, 12),
        "attn.proj.bias": (12,),
        "ls1": (12,),
        "norm2.weight": (12,),
        "norm2.bias": (12,),
        "mlp.fc1.weight": (48, 12),
        "mlp.fc1.bias": (48,),
        "mlp.fc2.weight": (12, 48),
        "mlp.fc2.bias": (12,),
        "ls2": (12,),
    }
    assert seen.blocks[0]["attn.proj.weight"].axes == (("d",), ("h", "k"))
    assert seen.blocks[0]["attn.v.bias"].axes == (("h", "k"),)
    spec = seen.spec("blocks.1.attn.qkv.weight")
    assert (spec.stack, spec.block, spec.role) == ("blocks", 1, "attn.qkv.weight")
    assert spec.parts == ("attn.q.weight", "attn.k.weight", "attn.v.weight")


def test_class_attention_is_an_extra_stack():
    seen = anatomy(on_meta("cait_xxs24_224"))
    assert (seen.depth, len(seen.blocks)) == (24, 24)
    assert [stack for stack, _ in seen.extra_blocks] == ["token_blocks"] * 2
    assert seen.blocks[0]["attn.talk_l.weight"].axes == (("h",), ("h",))
    assert seen.extra_blocks[1][1]["attn.q.weight"].size == (192, 192)


def test_convnext_stages_follow_one_another():
    seen = anatomy(on_meta("convnext_atto"))
    assert seen.traits.depths == (2, 2, 6, 2)
    assert (seen.family, seen.depth) == ("convnext", 12)
    assert [b["mlp.fc1.weight"].spec.stack for b in seen.blocks[1:5]] == [
        "stages.0",
        "stages.1",
        "stages.1",
        "stages.2",
    ]
    assert seen.blocks[4]["mlp.fc1.weight"].size == (640, 160)
    assert seen.blocks[4]["mlp.fc1.weight"].axes == (("m2",), ("d2",))


def test_contextual_position_tables_of_mini_deit():
    model = tiny()
    for block in model.blocks:
        for part, shape in (("q", (1, 4, 9)), ("k", (1, 4, 9)), ("v", (1, 9, 4))):
            table = nn.Module()
            table.lookup_table_weight = nn.Parameter(torch.zeros(shape))
            setattr(block.attn, f"rpe_{part}", table)
    block = anatomy(model).blocks[1]
    assert block["attn.rpe_q.weight"].size == block["attn.rpe_k.weight"].size == (4, 9)
    assert block["attn.rpe_v.weight"].axes == (("u",), ("k",))


def test_unknown_names_of_a_spec():
    with pytest.raises(AnatomyError, match="no parameter is called 'x'"):
        anatomy(tiny()).spec("x")


def test_it_survives_copies_and_json():
    seen = anatomy(tiny())
    assert copy.deepcopy(seen) == pickle.loads(pickle.dumps(seen)) == seen
    values = json.loads(json.dumps(seen.to_dict()))
    assert values["sizes"]["d"] == 12
    assert values["traits"]["grid"] == [4, 4]
    assert len(values["parameters"]) == len(seen.specs)


def test_the_tables_of_words_and_of_positions():
    images = anatomy(tiny())
    assert images.word_table is None and images.position_table is images.outside["pos"]
    assert anatomy(tiny(pos_embed="none")).position_table is None
    config = transformers.GPT2Config(vocab_size=31, n_embd=12, n_layer=1, n_head=3)
    texts = anatomy(transformers.GPT2Model(config))
    assert texts.word_table is not None and texts.word_table.size == (31, 12)
