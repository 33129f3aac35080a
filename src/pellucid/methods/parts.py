"""A code that falls into parts, one an attribute: what each part holds, and what a user may put there.

B  batch; D  entries of the code, in m parts; K  values of an attribute
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.methods.base import Pictures, Stage
from pellucid.methods.swaps import columns_of
from pellucid.types import Attribute, Batch, Control, Readout

TAKEN = ("code", "seed", "n", "out", "run", "set", "json", "device", "batch", "controls", "across", "down")
"""What commands and readouts are called, and so no attribute may be."""


MEASURED_ON = 2048
"""How many training pictures the codes' mean and spread are measured on."""


def option(name: str) -> str:
    """An attribute's name as that of a control: "hair colour" -> "hair_colour"."""
    return "".join(c if c.isalnum() else "_" for c in name.strip().lower())


@torch.no_grad()
def measured(pictures: Pictures, encode: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
    """Codes (N, D) of the training pictures by which mean and spread are known."""
    return torch.cat([encode(part.to(device)).float() for part in pictures(MEASURED_ON)])


class Parts(nn.Module):
    """Beside a code: of each part, a linear classifier of its attribute's values, and where each value lies: a mean of
    its own, and a variance of each entry that all values share.

    Both are learned of finished codes, and nothing else is learned by them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, sizes: tuple[int, ...], attributes: tuple[Attribute, ...]) -> None:
        super().__init__()
        values = [len(a.values) for a in attributes]
        self.attributes, self.columns = attributes, columns_of(sizes)
        self.names = tuple(option(a.name) for a in attributes)
        self.heads = nn.ModuleList(nn.Linear(p, k) for p, k in zip(sizes, values, strict=True))
        self.typical = nn.ParameterList(
            nn.Parameter(0.01 * torch.randn(k, p)) for p, k in zip(sizes, values, strict=True)
        )
        self.logvars = nn.ParameterList(nn.Parameter(torch.zeros(p)) for p in sizes)
        self.register_buffer("mean", torch.zeros(sum(sizes)))
        self.register_buffer("std", torch.ones(sum(sizes)))

    def fit(self, codes: Tensor) -> None:
        """Measure mean and spread of finished codes (N, D): everything here is learned in those units."""
        self.mean.copy_(codes.mean(0))
        self.std.copy_(codes.std(0, correction=0).clamp(min=1e-6))

    def unit(self, w: Tensor) -> Tensor:
        """w (B, D) in units of the spread, about the mean."""
        return (w - self.mean) / self.std

    # ---- what is read --------------------------------------------------------------------------

    @property
    def readouts(self) -> dict[str, Readout]:
        return {
            name: Readout(
                kind="shares", shape=(len(attribute.values),), names=attribute.values,
                help=f"how likely each value of {attribute.name} is, read from its own part alone",
            )
            for name, attribute in zip(self.names, self.attributes, strict=True)
        }  # fmt: skip

    def shares(self, w: Tensor) -> dict[str, Tensor]:
        """w (B, D) -> of each attribute the probability of every value, (B, K)."""
        unit, each = self.unit(w), zip(self.names, self.heads, self.columns, strict=True)
        return {name: head(unit[:, part]).float().softmax(1) for name, head, part in each}

    def reading_loss(self, w: Tensor, values: Tensor) -> Tensor:
        """Cross-entropy of the classifiers, summed over attributes: of codes (B, D) with values (B, m), -1 unknown."""
        loss, unit = w.new_zeros(()), self.unit(w)
        for i, (head, part) in enumerate(zip(self.heads, self.columns, strict=True)):
            known = values[:, i] >= 0
            if known.any():
                loss = loss + F.cross_entropy(head(unit[known][:, part]).float(), values[known, i])
        return loss

    def lying_loss(self, w: Tensor, values: Tensor) -> Tensor:
        """Negative log-density, a mean over entries, of each part about where its value lies; arguments as above."""
        loss, unit = w.new_zeros(()), self.unit(w)
        for i, (where, part) in enumerate(zip(self.typical, self.columns, strict=True)):
            known = values[:, i] >= 0
            if known.any():
                away = (where[values[known, i]] - unit[known][:, part]).square()
                logvar = self.logvars[i].clamp(-10, 10)
                loss = loss + 0.5 * (away * (-logvar).exp() + logvar).mean()
        return loss

    # ---- what is set ---------------------------------------------------------------------------

    def add_controls(self, controls: dict[str, Control]) -> None:
        """Those of parts and values beside others; a ValueError where an attribute has the name of one."""
        controls["replace"] = Control(
            kind="images",
            choices=self.names,
            help="pictures that parts are taken from, each as PART=picture",
        )
        for name, attribute in zip(self.names, self.attributes, strict=True):
            if not name or name in controls or name in TAKEN:
                raise ValueError(
                    f"an attribute is called {attribute.name!r}, which means something else here, or is there twice: "
                    f"rename its column"
                )
            controls[name] = Control(
                kind="choice",
                choices=attribute.values,
                help=f"the value of {attribute.name}, as it typically is",
            )

    def column(self, name: str) -> slice:
        return self.columns[self.names.index(name)]

    def changed(self, w: Tensor, use: Mapping[str, Any], parts_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Codes (B, D) with the parts that controls take from pictures, or set to a value.

        `parts_of` gives the codes of as many pictures, or of one.
        """
        w = w.clone()
        for name, picture in (use["replace"] or {}).items():
            w[:, self.column(name)] = parts_of(picture)[:, self.column(name)]
        for where, name, part in zip(self.typical, self.names, self.columns, strict=True):
            if use[name] is None:
                continue
            if name in (use["replace"] or {}):
                raise ValueError(f"{name} is set, and also taken from a picture by replace: give one of them")
            w[:, part] = self.mean[part] + self.std[part] * where[use[name]]
        return w

    def drawn(self, n: int, rng: torch.Generator) -> Tensor:
        """n codes (n, D), of each attribute a part as those of one value are, the values drawn uniformly."""
        found = []
        for where, logvar in zip(self.typical, self.logvars, strict=True):
            value = torch.randint(len(where), (n,), generator=rng, device=rng.device).to(where.device)
            noise = torch.randn(n, where.shape[1], generator=rng, device=rng.device).to(where.device)
            found.append(where[value] + noise * (0.5 * logvar).exp())
        return self.mean + self.std * torch.cat(found, 1).detach()


class ReadParts(Stage):
    """What `Parts` know is learned of the codes of a method whose training has ended."""

    name = "parts"
    derives = True
    looks = False

    def __init__(self, parts: Parts, parts_of: Callable[[Tensor], Tensor]) -> None:
        self.parts, self.parts_of = parts, parts_of
        self.players = {"parts": list(parts.parameters())}

    def prepare(self, pictures: Pictures) -> None:
        self.parts.fit(measured(pictures, self.parts_of, self.parts.mean.device))

    @torch.no_grad()
    def derive(self, x0: Tensor) -> dict[str, Tensor]:
        return {"w": self.parts_of(x0)}

    def losses(self, batch: Batch, rng: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        assert batch.attributes is not None
        w = batch.derived["w"]
        reading = self.parts.reading_loss(w, batch.attributes)
        yield "parts", {"read": reading, "lie": self.parts.lying_loss(w, batch.attributes)}


def checked(attributes: tuple[Attribute, ...], sizes: tuple[int, ...], code: int) -> None:
    """A ValueError where sizes of parts, their sum and the attributes do not go together."""
    if not sizes or min(sizes) < 1:
        raise ValueError(f"parts is {sizes}; each attribute's part has one entry at least")
    if sum(sizes) != code:
        raise ValueError(
            f"parts {sizes} add up to {sum(sizes)}, and the code has {code} entries: set both, parts and code"
        )
    if len(sizes) != len(attributes):
        names = ", ".join(a.name for a in attributes) or "none"
        raise ValueError(
            f"parts is {sizes}, for {len(sizes)} attributes; there are {len(attributes)} ({names})"
        )
    for attribute in attributes:
        if len(attribute.values) < 2:
            what = f"one value alone, {attribute.values[0]!r}" if attribute.values else "no value"
            raise ValueError(
                f"the attribute {attribute.name!r} has {what}; nothing can be learned of it: take its column out of "
                f"the table"
            )
