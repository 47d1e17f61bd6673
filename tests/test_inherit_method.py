import torch
from helpers.inherit import Stub, small_vit

from weightinit.inherit.method import outside_of


class Counting(Stub):
    read = 0

    def part(self, piece):
        self.read += 1
        return super().part(piece)


def test_tensors_outside_the_blocks_are_read_when_they_are_needed():
    model = small_vit()
    source = Counting(model)
    outside = outside_of(source)
    assert set(outside) == set(source.anatomy.outside)
    assert outside["pos"].shape == (5, 24) and source.read == 0
    value = outside["pos"].to(torch.zeros((), dtype=torch.float64))
    assert value.dtype == torch.float64 and source.read == 1
    assert torch.equal(value.float(), model.pos_embed[0])
