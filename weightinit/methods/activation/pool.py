"""An attention pool after the blocks (SigLIP's), fitted to read a smaller stream and to be one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from weightinit.anatomy import Anatomy
from weightinit.errors import ProjectionError
from weightinit.inherit.running import Running, exact, watching
from weightinit.methods.activation.blocks import Values
from weightinit.methods.activation.head import bare_norms, readers
from weightinit.methods.activation.keep import MORE
from weightinit.methods.activation.leastsquares import Moments, choose
from weightinit.methods.activation.stream import Stream, centres, normalise, principal

__all__ = ["fit_pool", "pools"]

LAYERS = ("q", "k", "v", "proj", "norm", "mlp.fc1", "mlp.fc2")
ROLES = {f"pool.{layer}.{kind}" for layer in LAYERS for kind in ("weight", "bias")}
#: What a pool sees and makes, by name.
Seen = dict[str, list[Tensor]]


def pools(old: Anatomy, new: Anatomy) -> bool:
    """Return whether both models end in an attention pool of the kind that is fitted here."""
    wanted = {*ROLES, "pool.latent"}

    def fits(model: Anatomy) -> bool:
        roles = {role for role, piece in model.outside.items() if piece.facts.pooling}
        norms = {role for role, piece in model.outside.items() if piece.facts.place == "final norm"}
        if roles != wanted or norms != {"norm.weight", "norm.bias"}:
            return False
        return model.outside["pool.latent"].size[0] == 1

    return fits(old) and fits(new) and old.sizes["kp"] == new.sizes["kp"]


@torch.no_grad()
def fit_pool(
    running: Running,
    target: Anatomy,
    stream: Stream,
    theirs: Sequence[Tensor],
    ours: Sequence[Tensor],
    *,
    ridge: float,
) -> tuple[Values, Tensor]:
    """Return the values of a narrower target's pool and head, and the bias of the norm before it.

    The pool is a block that reads the stream after the blocks by attention and writes into a stream
    of its own, of one token a sample: that has its own principal directions. Query and latent give
    the same numbers as the ancestor's; all else is fitted as in a block. Arguments are those of
    :func:`~weightinit.methods.activation.head.fit_head`.
    """
    fit = _Pool(running, target, stream, theirs, ours, ridge)
    fit.look()
    fit.attend()
    fit.read_and_write()
    fit.head()
    checked = {role: running.check(value).cpu() for role, value in fit.values.items()}
    return checked, torch.zeros_like(stream.write[:, 0]).cpu()


@dataclass
class _Pool:
    """A pool in the making: the ancestor's copy plays it, padded with zeros."""

    running: Running
    target: Anatomy
    stream: Stream
    theirs: Sequence[Tensor]
    ours: Sequence[Tensor]
    ridge: float
    values: Values = field(default_factory=Values)

    def __post_init__(self) -> None:
        """Name the modules."""
        self.outside = self.running.anatomy.outside
        pieces = [self.outside[role] for role in ROLES]
        self.whole = self.running.around([*pieces, self.outside["pool.latent"]])
        self.parts = {role: exact(self.part(role)).clone() for role in {*ROLES, "pool.latent"}}
        self.norm = self.running.owner(self.outside["pool.norm.weight"])

    def part(self, role: str) -> Tensor:
        """Return a parameter of the ancestor's copy."""
        return self.running.part(self.outside[role])

    def size(self, label: str) -> int:
        """Return a size of the target."""
        return self.target.sizes[label]

    def see(self, streams: Sequence[Tensor]) -> Seen:
        """Return what the pool sees and makes after streams, ``[samples, channels]`` a batch."""
        found: Seen = {name: [] for name in ("hidden", "middle", "normed", "neurons", "out")}

        def note(name: str) -> Callable[[Tensor], None]:
            return lambda x: found[name].append(x.reshape(-1, x.shape[-1]))

        def owner(role: str) -> torch.nn.Module:
            return self.running.owner(self.outside[f"{role}.weight"])

        inputs = {
            owner("pool.proj"): note("hidden"),
            self.norm: note("middle"),
            owner("pool.mlp.fc2"): note("neurons"),
        }
        outputs = {self.norm: note("normed"), self.whole: note("out")}
        for number, x in enumerate(streams):
            with watching(inputs, outputs):
                self.running.resume(number, x)
        return found

    def look(self) -> None:
        """See what the ancestor's pool does, and find the directions of its stream."""
        seen = self.seen = self.see(self.theirs)
        hidden, middle, neurons, out = (
            exact(seen[name][0]) for name in ("hidden", "middle", "neurons", "out")
        )
        parts = self.parts
        written = hidden @ parts["pool.proj.weight"].T + parts["pool.proj.bias"]
        added = neurons @ parts["pool.mlp.fc2.weight"].T + parts["pool.mlp.fc2.bias"]
        if not all(
            one.shape == other.shape and torch.allclose(one, other, 1e-3, 1e-3)
            for one, other in ((written, middle), (middle + added, out))
        ):
            raise ProjectionError(
                "the ancestor's attention pool does not add an MLP to what its attention makes: "
                "use method='subcloning'"
            )
        moment = torch.zeros_like(parts["pool.proj.weight"] @ parts["pool.proj.weight"].T)
        for name in ("middle", "out"):
            for x in seen[name]:
                z = exact(normalise(x, self.norm))
                moment += z.T @ z
        centred = centres(self.norm)
        self.own = principal(self.running.check(moment), self.size("d"), centred=centred)

    def attend(self) -> None:
        """Fit what attention reads and writes."""
        norm = self.running.owner(self.outside["norm.weight"])
        gain = exact(self.part("norm.weight")).clone()
        bias = exact(self.part("norm.bias")).clone()
        reads = Moments()
        for x, y in zip(self.theirs, self.ours, strict=True):
            given = normalise(y, norm) @ self.stream.write.T.to(y)
            reads.add(given, normalise(x, norm) * gain.to(x) + bias.to(x))
        bare_norms(self.running)
        weight, offset = reads.fit(gain[:, None] * self.stream.read, ridge=self.ridge)
        parts, own = self.parts, self.own
        kept = self._keep("hp", "pool.proj.weight", "hidden", self.size("kp"))
        for layer in ("pool.k", "pool.v"):
            matrix = parts[f"{layer}.weight"]
            self._put(f"{layer}.weight", (matrix @ weight)[kept], self.stream.write)
            self._put(f"{layer}.bias", (parts[f"{layer}.bias"] + matrix @ offset)[kept])
        # The copy's own query stays in its terms; the target's has the same values.
        query, latent = parts["pool.q.weight"][kept], parts["pool.latent"]
        asked = query @ latent[0] + parts["pool.q.bias"][kept]
        for role, value in (("pool.q.weight", query), ("pool.q.bias", parts["pool.q.bias"][kept])):
            self._put(role, value)
        self.values["pool.latent"] = latent @ own.write.T
        self.values["pool.q.weight"] = query @ own.read
        self.values["pool.q.bias"] = asked - self.values["pool.q.weight"] @ own.write @ latent[0]
        wanted = [x @ own.write.T.to(x) for x in self.seen["middle"]]
        self._write("pool.proj", kept, self.see(self.ours)["hidden"], wanted)

    def read_and_write(self) -> None:
        """Fit what the MLP reads and writes."""
        own, parts = self.own, self.parts
        gain = parts["pool.norm.weight"]
        for role, value in (("pool.norm.weight", 1.0), ("pool.norm.bias", 0.0)):
            self.part(role).fill_(value)
            self.values[role] = torch.full_like(own.write[:, 0], value)
        now, reads = self.see(self.ours), Moments()
        for x, wanted in zip(now["normed"], self.seen["normed"], strict=True):
            reads.add(x @ own.write.T.to(x), wanted)
        weight, offset = reads.fit(gain[:, None] * own.read, ridge=self.ridge)
        kept = self._keep("mp", "pool.mlp.fc2.weight", "neurons", 1)
        matrix = parts["pool.mlp.fc1.weight"]
        self._put("pool.mlp.fc1.weight", (matrix @ weight)[kept], own.write)
        self._put("pool.mlp.fc1.bias", (parts["pool.mlp.fc1.bias"] + matrix @ offset)[kept])
        now = self.see(self.ours)
        pairs = zip(self.seen["out"], now["middle"], strict=True)
        wanted = [(x - y) @ own.write.T.to(x) for x, y in pairs]
        self._write("pool.mlp.fc2", kept, now["neurons"], wanted)

    def head(self) -> None:
        """Fit what reads the pool."""
        now = self.see(self.ours)["out"]
        for role, piece in readers(self.running.anatomy, self.target).items():
            matrix, bias = exact(self.part(role)), piece.facts.bias_role
            free = bias in self.outside.keys() & self.target.outside.keys()
            moments = Moments()
            for x, wanted in zip(now, self.seen["out"], strict=True):
                moments.add(x @ self.own.write.T.to(x), wanted)
            weight, offset = moments.fit(self.own.read, ridge=self.ridge, bias=free)
            self.values[role] = matrix @ weight
            if free:
                self.values[bias] = exact(self.part(bias)) + matrix @ offset

    def _keep(self, label: str, role: str, name: str, unit: int) -> Tensor:
        """Return which inputs of a matrix that writes are kept, those that explain most."""
        matrix, number = self.own.write @ self.parts[role], self.size(label)
        if matrix.shape[1] == number * unit:
            return torch.arange(number * unit, device=matrix.device)
        moments = Moments()
        for x in self.seen[name]:
            moments.add(x)
        gram = self.running.check(moments.centred()[0])
        among = torch.arange(len(gram), device=gram.device)
        if unit == 1:
            written = gram.diagonal() * matrix.square().sum(0)
            among = written.topk(min(len(gram), int(MORE * number))).indices.sort().values
        gram = gram[among][:, among]
        units = choose(gram, gram @ matrix[:, among].T, number, unit=unit)[0].to(gram.device)
        return among[(units[:, None] * unit + torch.arange(unit).to(units)).flatten()]

    def _put(self, role: str, value: Tensor, write: Tensor | None = None) -> None:
        """Take a value of the target; the copy gets it in the ancestor's terms."""
        self.values[role] = value
        part, value = self.part(role), value if write is None else value @ write
        part.zero_()
        part[tuple(slice(n) for n in value.shape)] = value.to(part)

    def _write(
        self, layer: str, kept: Tensor, given: Sequence[Tensor], wanted: Sequence[Tensor]
    ) -> None:
        """Fit a matrix that writes, given its kept inputs."""
        moments = Moments()
        for x, y in zip(given, wanted, strict=True):
            moments.add(x[:, : len(kept)], y)
        prior = self.own.write @ self.parts[f"{layer}.weight"][:, kept]
        weight, bias = moments.fit(prior, ridge=self.ridge)
        self.values |= {f"{layer}.weight": weight, f"{layer}.bias": bias}
        room = self.part(f"{layer}.weight")
        room.copy_(pad(self.own.read @ weight, (0, room.shape[1] - len(kept))).to(room))
        self.part(f"{layer}.bias").copy_(self.own.read @ bias)
