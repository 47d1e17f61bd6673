"""Behaviour cloning of an expert that balances bodies of one to four links on a cart.

One token a part of the body, as in MetaMorph (Gupta et al., 2022); the physics are MuJoCo's. The
expert is a linear-quadratic regulator of each body's linearised dynamics.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.linalg import solve_discrete_are
from torch import Tensor, nn
from torch.nn import functional

import weightinit as wi
from domains.domain import Domain, Part, Shape
from weightinit.anatomy import Rule

# Of the bench extra, which an environment of the tests lacks.
mujoco: Any = importlib.import_module("mujoco")

#: Parts of the largest body, numbers a part, steps of an episode that counts.
PARTS, NUMBERS, EPISODE = 5, 8, 400
#: Largest displacement at the start of an episode, in radians and metres.
TILT = 0.02
TRAINED, UNSEEN = (1, 2, 3), 4
#: How near to its place a body must end, in metres.
NEAR = 0.5
BODIES = {"train": 240, "val": 60, "test": 60}


@dataclass
class Body:
    """A cart with links, its regulator, and the constant half of its tokens."""

    links: int
    seed: int
    target: float = 0.0

    def __post_init__(self) -> None:
        """Build the body and solve for the expert."""
        draw = np.random.default_rng(self.seed)
        self.lengths, self.masses = (
            draw.uniform(0.3, 0.9, self.links),
            draw.uniform(0.1, 0.5, self.links),
        )
        chain, ends = "", ""
        for number, (length, mass) in enumerate(zip(self.lengths, self.masses, strict=True)):
            at = f'pos="0 0 {self.lengths[number - 1]}"' if number else ""
            chain += (
                f'<body {at}><joint type="hinge" axis="0 1 0" damping="0.01"/>'
                f'<geom type="capsule" fromto="0 0 0 0 0 {length}" size="0.03" mass="{mass}"/>'
            )
            ends += "</body>"
        self.model = mujoco.MjModel.from_xml_string(
            '<mujoco><option timestep="0.005"><flag contact="disable"/></option><worldbody>'
            '<body><joint name="slide" type="slide" axis="1 0 0" damping="0.05"/>'
            f'<geom type="box" size="0.1 0.1 0.05" mass="1"/>{chain}{ends}</body></worldbody>'
            '<actuator><motor joint="slide" gear="30" ctrlrange="-1 1" ctrllimited="true"/>'
            "</actuator></mujoco>"
        )
        self.data = mujoco.MjData(self.model)
        size = 2 * self.model.nv
        a, b = np.zeros((size, size)), np.zeros((size, 1))
        mujoco.mjd_transitionFD(self.model, self.data, 1e-6, True, a, b, None, None)
        cost = np.diag([1.0] + [10.0] * self.links + [0.1] * self.model.nv)
        value = solve_discrete_are(a, b, cost, np.eye(1))
        self.gain = np.linalg.solve(np.eye(1) + b.T @ value @ b, b.T @ value @ a)
        self.rows = np.zeros((PARTS, NUMBERS), np.float32)
        self.rows[0, [0, 3]] = 1
        links = np.arange(1, self.links + 1)
        self.rows[links, 1:4] = np.stack([links / 4, self.lengths, self.masses], 1)

    def reset(self, draw: np.random.Generator) -> None:
        """Stand nearly upright."""
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = draw.uniform(-TILT, TILT, self.model.nq)
        self.data.qvel[:] = draw.uniform(-TILT, TILT, self.model.nv)

    def expert(self) -> float:
        """Return the regulator's action."""
        state = np.concatenate([self.data.qpos, self.data.qvel])
        state[0] -= self.target
        return float(np.clip(-self.gain @ state, -1, 1)[0])

    def tokens(self) -> np.ndarray:
        """Return ``[PARTS, NUMBERS]``; rows of parts that the body lacks are zero."""
        rows, q, speed = self.rows.copy(), self.data.qpos, self.data.qvel
        rows[0, 4:6] = q[0] - self.target, speed[0]
        links = rows[1 : self.links + 1]
        links[:, 4], links[:, 5] = 5 * q[1:], speed[1:]
        links[:, 6], links[:, 7] = 5 * q[1:].cumsum(), speed[1:].cumsum()
        return rows

    def step(self, action: float) -> bool:
        """Act; return whether the body still stands and is near its place."""
        self.data.ctrl[0] = np.clip(action, -1, 1)
        mujoco.mj_step(self.model, self.data)
        angles = np.abs(np.cumsum(self.data.qpos[1:]))
        return bool(angles.max() < 0.6 and abs(self.data.qpos[0] - self.target) < 3)


def demonstrations(part: str) -> dict[str, Tensor]:
    """Return what the expert does, noise on half of the executed actions, its labels without."""
    draw = np.random.default_rng(len(part))
    tokens, actions = [], []
    for number in range(BODIES[part]):
        body = Body(TRAINED[number % len(TRAINED)], seed=1000 * list(BODIES).index(part) + number)
        body.reset(draw)
        for _ in range(250):
            action = body.expert()
            tokens.append(body.tokens())
            actions.append(action)
            noise = 0.3 * draw.standard_normal() if draw.random() < 0.5 else 0.0
            if not body.step(action + noise):
                body.reset(draw)
    return {
        f"tokens_{part}": torch.from_numpy(np.stack(tokens)),
        f"actions_{part}": torch.tensor(actions),
    }


class Policy(nn.Module):
    """An encoder over the parts of a body; the cart's token says the force."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.limb = nn.Linear(NUMBERS, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, depth, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.force = nn.Linear(width, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``[b, PARTS, NUMBERS]`` to actions ``[b]``."""
        absent = ~tokens.any(-1)
        x = self.encoder(self.limb(tokens), src_key_padding_mask=absent)
        return self.force(x[:, 0]).squeeze(-1)


class Balance(Domain):
    """Mean square error of the action; the score that decides is that on held-out bodies."""

    full = Shape((4,), 48)
    sizes = wi.Sizes(depths=(2, 3, 4), widths=(1, 0.5))
    targets = tuple(Shape((depth,), 48) for depth in (2, 6, 8)) + tuple(
        Shape((4,), width) for width in (24, 36, 96)
    )
    long = Shape((2,), 24)
    batch = 256
    short = 400
    weight_decay = 0.0
    rates = (5e-4, 2e-3)
    source_rate = 2e-3
    metric = ("error", False)
    data = "240 bodies of one to three links on a cart, balanced by their regulators"
    rules = (
        Rule(r"limb\.weight", "limb.weight", "d i"),
        Rule(r"limb\.bias", "limb.bias", "d"),
        Rule(r"force\.weight", "force.weight", "o d"),
        Rule(r"force\.bias", "force.bias", "o"),
    )

    def __init__(self, device: str, cache: Path) -> None:
        super().__init__(device, cache)
        file = cache / "balance.safetensors"
        if not file.exists():
            found: dict[str, Tensor] = {}
            for part in BODIES:
                found |= demonstrations(part)
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file(found, file)
        self.tensors = {name: value.to(self.device) for name, value in load_file(file).items()}

    def build(self, shape: Shape) -> nn.Module:
        """Return a policy, heads of 12 channels."""
        return Policy(shape.width, shape.depths[0], shape.width // 12)

    def loss(self, model: nn.Module, generator: torch.Generator) -> Tensor:
        """Return the error on random demonstrations."""
        tokens, actions = self.tensors["tokens_train"], self.tensors["actions_train"]
        rows = torch.randint(len(actions), (self.batch,), generator=generator, device=self.device)
        return functional.mse_loss(model(tokens[rows]), actions[rows])

    @torch.no_grad()
    def scores(self, model: nn.Module, part: Part) -> dict[str, float]:
        """Return the error on the demonstrations of bodies that training has not seen."""
        made = torch.cat([model(some) for some in self.tensors[f"tokens_{part}"].split(5000)])
        return {"error": functional.mse_loss(made, self.tensors[f"actions_{part}"]).item()}

    @torch.no_grad()
    def judged(self, model: nn.Module, folder: Path) -> dict[str, Any]:
        """Return how many of 20 unseen bodies a policy balances, in percent, by number of links.

        Four links were never trained; ``moved`` is two links that must go to another place.
        """
        tasks = {str(links): (links, 0.0) for links in (*TRAINED, UNSEEN)} | {"moved": (2, 1.0)}
        bodies = {name: self.bodies(*task) for name, task in tasks.items()}
        standing = [body for some in bodies.values() for body in some]
        for _ in range(EPISODE):
            if not standing:
                break
            tokens = torch.from_numpy(np.stack([body.tokens() for body in standing]))
            actions = model(tokens.to(self.device)).tolist()
            standing = [body for body, act in zip(standing, actions, strict=True) if body.step(act)]
        alive = {id(body) for body in standing if abs(body.data.qpos[0] - body.target) < NEAR}
        return {
            f"success_{name}": 100 * sum(id(body) in alive for body in some) / len(some)
            for name, some in bodies.items()
        }

    @staticmethod
    def bodies(links: int, target: float) -> list[Body]:
        """Return 20 bodies that training has not seen, nearly upright."""
        draw = np.random.default_rng(links)
        bodies = [Body(links, seed=9000 + 100 * links + n, target=target) for n in range(20)]
        for body in bodies:
            body.reset(draw)
        return bodies
