"""Small hypernetworks, presets and texts to train, and runs that are killed."""

from dataclasses import replace

import pytest
import torch

from weightinit.hypernet.config import HyperConfig
from weightinit.hypernet.network import GraphHyperNetwork
from weightinit.hypernet.samplers import Sampler, micro
from weightinit.training import hypernet as meta
from weightinit.training.config import MetaConfig, TrainingConfig
from weightinit.training.hypernet_presets import HyperPreset
from weightinit.training.images import ImageData, Split
from weightinit.training.presets import Preset
from weightinit.training.teacher import Network
from weightinit.training.text import load_text

SMALL = {"hid": 16, "layers": 2, "heads": 2, "rank": 4, "max_ck": 1024, "num_classes": 10}
TEXT = "".join(f"{i} bottles of beer on the wall, take one down; " for i in range(60))

#: Vision transformers that a hypernetwork is trained on in seconds.
VITS = Sampler("tiny", {2: (32, 48)}, "sixteenths", {8: (4,)}, class_token=False)
#: GPT-2s likewise, and one of them.
GPTS = Sampler("tiny-gpt", {1: (16, 32), 2: (16, 32)}, "sixteenths", {}, family="gpt2")
GPT = GPTS.kwargs(2, 16, 1)

SIZE = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "num_heads": 2}
TINY = Preset(
    name="tiny",
    data="digits",
    auxiliary=Network("vit_tiny_patch16_224", {**SIZE, "depth": 3}),
    ancestor=Network(
        "resnet10t",
        {"channels": (8, 8, 8, 8), "stem_width": 8},
        image_size=16,
        training=TrainingConfig(steps=6, batch_size=32),
    ),
    training=TrainingConfig(steps=8, batch_size=32, lr=1e-2, warmup_steps=4, loss="soft+ce"),
    pools=("avg", "token"),
    depths=(2, 4),
)
LOGAH = HyperPreset(
    name="tiny",
    config=HyperConfig("logah", **SMALL),
    training=MetaConfig(steps=4, batch_size=16, warmup_steps=2),
    sampler="micro",
    data=("digits",),
    image_size=8,
    watch=(micro(48, 3, image_size=8),),
)


def hypernet(kind="logah", seed=0, **changes):
    """A hypernetwork as a training begins with it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GraphHyperNetwork(HyperConfig(kind, **(SMALL | changes)))


def colours(count=48, size=16):
    """Random colour images of four classes."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, size, size, 3), dtype=torch.uint8, generator=draw)
    part = Split(images, torch.arange(count) % 4)
    return ImageData("colours", part, part, part, 4, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), flip=True)


def song(folder):
    """A text that repeats itself, written to a folder and loaded."""
    path = folder / "song.txt"
    path.write_text(TEXT)
    return load_text(path, context=16, vocabulary="characters")


def backwards(text):
    return replace(text, name="back", train=text.train.flip(0), val=text.val.flip(0))


def gpt(text, **changes):
    """A small GPT-2 of a text's vocabulary."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return text.build(text.arguments(GPT | changes)).train()


def bits(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Killed(Exception):
    pass


def killed_and_resumed(data, config, options, kind, folder, monkeypatch):
    """Check that a run that was killed ends with the bits of one that was not.

    Returns:
        The network, and the history of its training.
    """
    whole, cut, resumed = (hypernet(kind[0], seed=seed, **kind[1]) for seed in (0, 0, 1))
    expected = meta.meta_train(whole, data, config, **options)
    loss, calls = meta.meta_loss, []

    def mortal(*arguments):
        calls.append(1)
        if len(calls) == 6:
            raise Killed
        return loss(*arguments)

    monkeypatch.setattr(meta, "meta_loss", mortal)
    with pytest.raises(Killed):
        meta.meta_train(cut, data, config, out=folder, **options)
    monkeypatch.setattr(meta, "meta_loss", loss)
    history = meta.meta_train(resumed, data, config, out=folder, resume=True, **options)
    assert equal(bits(resumed), bits(whole))
    assert history.rows[-1] == expected.rows[-1]
    return resumed, history
