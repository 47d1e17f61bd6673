import timm
import torch

from weightinit.anatomy import anatomy


def test_table_gathers_blocks_of_one_shape():
    with torch.device("meta"):
        model = timm.create_model("samvit_base_patch16")
    lines = str(anatomy(model)).splitlines()
    assert lines[0] == "vit of timm, 12 blocks"
    assert "h=12" in lines[1].split()
    assert "grid=(64, 64)" in lines[2]
    row = next(line for line in lines if "attn.qkv.weight" in line)
    assert row.split() == "blocks 0-11 attn.qkv.weight (3 h k) d 2304 x 768".split()
    row = next(line for line in lines if "127 x 64" in line)
    assert row.startswith("blocks 2,5,8,11 ")
    assert len(lines) < 40
    assert not any(line != line.rstrip() for line in lines)


def test_table_tells_of_ties_and_scalars():
    model = timm.models.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=12, depth=1, num_heads=3, num_classes=12
    )
    model.head.weight = model.blocks[0].attn.proj.weight
    assert "12 x 12, tied to head.weight" in str(anatomy(model))


def test_dict_is_complete():
    with torch.device("meta"):
        model = timm.create_model("cait_xxs24_224")
    seen = anatomy(model)
    values = seen.to_dict()
    assert (values["family"], values["depth"]) == ("vit", 24)
    assert [p["name"] for p in values["parameters"]] == [n for n, _ in model.named_parameters()]
    assert {p["stack"] for p in values["parameters"]} == {"", "blocks", "token_blocks"}
    qkv = next(p for p in values["parameters"] if p["role"] == "attn.qkv.weight")
    assert qkv["parts"] == ["attn.q.weight", "attn.k.weight", "attn.v.weight"]
    assert qkv["shape"] == [576, 192]


def test_what_no_rule_explains_is_told():
    model = timm.create_model("test_vit")
    model.adapter = torch.nn.Linear(2, 2)
    seen = anatomy(model, unexplained="keep")
    assert str(seen).endswith("no rule explains adapter.weight, adapter.bias")
    assert seen.to_dict()["unexplained"] == ["adapter.weight", "adapter.bias"]
