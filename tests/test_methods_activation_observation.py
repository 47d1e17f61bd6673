import torch
from helpers.models import draw

from weightinit.methods.activation.observation import picks


def test_many_tokens_are_sampled_and_every_class_token_is_among_them():
    few = picks([draw(4, 5, 2), draw(3, 5, 2)])
    assert [len(x) for x in few] == [20, 15]
    few = picks([draw(40, 5, 2), draw(20, 5, 2)])
    assert [len(x) for x in few] == [43, 22]
    for chosen, samples in zip(few, (40, 20), strict=True):
        assert torch.equal(chosen, chosen.unique())
        assert {5 * n for n in range(samples)} <= {*chosen.tolist()}
    assert torch.equal(few[0], picks([draw(40, 5, 2), draw(20, 5, 2)])[0])
