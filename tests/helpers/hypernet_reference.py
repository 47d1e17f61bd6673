"""The published code's way, from the benchmarks, and small hypernetworks to compare with it."""

import importlib.util
import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from torchvision.models import VisionTransformer

from weightinit.ancestor.ancestor import Ancestor
from weightinit.hypernet.config import HyperConfig
from weightinit.hypernet.network import GraphHyperNetwork

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
KINDS = ("ghn3", "logah", "tal", "pith")


def load(name):
    """Import a benchmark's module by its file, under a name that no other test takes."""
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCHMARKS / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


published = load("published")


def config(kind="logah", **changes):
    sizes = {"hid": 16, "layers": 2, "heads": 2, "num_classes": 10}
    own = {
        "ghn3": {"max_shape": (32, 32, 11)},
        "logah": {"rank": 6, "max_ck": 4096, "max_shape": (256, 256, 16)},
        "tal": {"rank": 6, "max_ck": 4096, "max_shape": (256, 256, 16), "task_dim": 12},
        "pith": {"rank": 6, "max_ck": 4096, "max_shape": (512, 512, 16), "expansion": "original"},
    }[kind]
    return HyperConfig(kind, **{**sizes, **own, **changes})


def hypernet(kind="logah", *, seed=0, **changes):
    """A network whose every parameter is random: those that begin at zero hide mistakes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = GraphHyperNetwork(config(kind, **changes))
        for parameter in net.parameters():
            if parameter.dim() and not parameter.detach().any():
                torch.nn.init.normal_(parameter, std=0.05)
    return net.eval()


def torchvision_vit(depth=2, width=64, heads=4, mlp=None, size=64, patch=16, classes=10, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VisionTransformer(
            size, patch, depth, heads, width, mlp or 4 * width, num_classes=classes
        )
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def task_of(net):
    size = net.config.task_dim
    return torch.randn(size, generator=torch.Generator().manual_seed(2)) if size else None


class Golden:
    """A golden file: the hypernetwork, its target, and what the published code made of it."""

    def __init__(self, folder, kind):
        with safe_open(folder / f"{kind}_a.safetensors", "pt") as file:
            meta = file.metadata()
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}
        own = json.loads(meta["hyper_config"])
        rows, columns, side, _ = own["max_shape"]
        changes = {"max_shape": (rows, columns, side)}
        changes |= {key: own[key] for key in ("hid", "layers", "heads", "num_classes")}
        if kind != "ghn3":
            changes |= {"rank": own["lora_r"], "max_ck": own["max_ck_lora"]}
        if kind == "tal":
            changes |= {"task_dim": len(self.tensors["in/task_embedding"]), "dead_layer": False}
        self.net = GraphHyperNetwork(config(kind, **changes))
        self.net.load_state_dict(self.part("hyper"))
        self.target = VisionTransformer(**json.loads(meta["target_arch"]))
        self.task = self.tensors.get("in/task_embedding")
        self.ancestor = None
        if kind == "pith":
            teacher = VisionTransformer(**json.loads(meta["extra"])["teacher_arch"])
            teacher.load_state_dict(self.part("teacher"))
            self.ancestor = Ancestor.open(teacher)

    def part(self, prefix):
        return {
            name.removeprefix(f"{prefix}/"): value
            for name, value in self.tensors.items()
            if name.startswith(f"{prefix}/")
        }
