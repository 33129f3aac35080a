"""Learning by groups: what codes have to be so that parts of them may change places between samples.

Shared by DiffuseGAE, whose samples are latent codes, and by GZS-Net (Ge et al., "Zero-shot Synthesis with
Group-Supervised Learning", 2021), whose samples are pictures.

    B  samples, each with P partners; *S  a sample's shape; D  entries of a code, in m parts
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

Encode = Callable[[Tensor], Tensor]
"""(N, *S) -> (N, D)."""
Decode = Callable[[Tensor], Tensor]
"""(N, D) -> (N, *S)."""


def columns_of(parts: Sequence[int]) -> tuple[slice, ...]:
    """The entries of each part in a code."""
    ends = torch.tensor(parts).cumsum(0).tolist()
    return tuple(slice(end - size, end) for end, size in zip(ends, parts, strict=True))


def marks(parts: Sequence[int], subsets: Sequence[Sequence[int]]) -> Tensor:
    """(len(subsets), D) bool: the entries of the parts that each subset names."""
    owner = torch.arange(len(parts)).repeat_interleave(torch.tensor(parts))
    return torch.stack([torch.isin(owner, torch.tensor(subset)) for subset in subsets])


class Grouped(NamedTuple):
    """What groups ask of an autoencoder, each the mean absolute error over all it is asked for; scalars."""

    reconstruction: Tensor
    swap: Tensor
    reassembly: Tensor | None
    codes: Tensor
    """(B, D) of the samples themselves."""
    made: Tensor
    """(B, *S), the samples decoded from those."""


def grouped(
    encode: Encode,
    decode: Decode,
    samples: Tensor,
    partners: Tensor,
    parts: Sequence[int],
    rng: torch.Generator,
    *,
    shared: int = 1,
    known: Tensor | None = None,
    reassemble: bool = True,
) -> Grouped:
    """The three losses of DiffuseGAE, section 3.3.

    Reconstruction: every sample and partner from its own code. Swap: of a sample and each partner, the parts of what
    they share change places, and both have to come out as they are; and the sample, once more, from parts of its
    partners alone: 2 P + 1 terms, seven for three attributes. Reassembly: parts of any samples, put together, have
    to be found again in what is decoded from them. What a part says beside its own attribute cannot be: nothing that
    is decoded from the other parts agrees with it. So this term, which may move both of its sides, takes out of a part
    what is not its own.

    Args:
        samples: (B, *S).
        partners: (B, P, *S), in the order of `data.groups.Groups.subsets`.
        parts: sizes, as many as there are attributes.
        shared: how many attributes a partner shares.
        known: (B,) bool, which samples have a group at all; the others are left out of the swaps.
        reassemble: compute the third too.
    """
    b, p = partners.shape[:2]
    subsets = tuple(combinations(range(len(parts)), shared))
    if p != len(subsets):
        raise ValueError(
            f"there are {p} partners; {len(parts)} parts, {shared} of them shared, take {len(subsets)}"
        )
    everyone = torch.cat([samples[:, None], partners], 1)  # (B, 1 + P, *S)
    codes = encode(everyone.flatten(0, 1)).unflatten(0, (b, 1 + p))  # (B, 1 + P, D)
    own, theirs = codes[:, :1], codes[:, 1:]
    given = marks(parts, subsets).to(codes.device)  # (P, D)
    into_own = torch.where(given, theirs, own)  # (B, P, D), to be the sample
    into_theirs = torch.where(given, own, theirs)  # (B, P, D), to be the partner
    lender = torch.tensor([next(i for i, s in enumerate(subsets) if k in s) for k in range(len(parts))])
    lender = lender.repeat_interleave(torch.tensor(parts)).to(codes.device)  # (D,) who has each entry
    rebuilt = theirs.gather(1, lender.expand(b, 1, -1))  # (B, 1, D), to be the sample

    wanted = torch.cat([codes, into_own, into_theirs, rebuilt], 1)  # (B, 1 + P + P + P + 1, D)
    asked_to_make = [wanted.flatten(0, 1)]
    if reassemble:
        flat = codes.flatten(0, 1)
        mixed = torch.cat(
            [flat[_some(b, len(flat), rng).to(flat.device), part] for part in columns_of(parts)], 1
        )
        asked_to_make.append(mixed)
    made = decode(torch.cat(asked_to_make))
    mine = made[: len(asked_to_make[0])].unflatten(0, wanted.shape[:2])

    # what is asked for stays where it is: codes that may come to meet what is decoded run away from both
    still = everyone.detach()
    asked = torch.cat([still[:, :1].expand(-1, p, *still.shape[2:]), still[:, 1:], still[:, :1]], 1)
    error = (mine[:, 1 + p :] - asked).abs().flatten(1).mean(1)  # (B,)
    counted = error.new_ones(b) if known is None else known.to(error)
    return Grouped(
        reconstruction=(mine[:, : 1 + p] - still).abs().mean(),
        swap=(error * counted).sum() / counted.sum().clamp(min=1),
        reassembly=(encode(made[-b:]) - mixed).abs().mean() if reassemble else None,
        codes=codes[:, 0],
        made=mine[:, 0],
    )


def cycle(
    encode: Encode, decode: Decode, samples: Tensor, parts: Sequence[int], rng: torch.Generator
) -> Tensor:
    """GZS-Net's cycle attribute swap: mean absolute error of samples (B, *S) after a swap is undone; a scalar.

    Each sample borrows one part, drawn at random for all, from another; they are decoded and encoded, the part is given
    back, and they are decoded again. It compares samples and not codes, so that codes gain nothing by shrinking.
    """
    part = columns_of(parts)[int(torch.randint(len(parts), (1,), generator=rng, device=rng.device))]
    other = _some(len(samples), len(samples), rng).to(samples.device)
    own = encode(samples)
    swapped = own.clone()
    swapped[:, part] = own[other, part]
    again = encode(decode(swapped)).clone()
    back = again.clone()
    back[other, part] = again[:, part]  # whoever lent the part finds it with the one that borrowed it
    return (decode(back) - samples).abs().mean()


def _some(n: int, of: int, rng: torch.Generator) -> Tensor:
    """n different whole numbers below `of`, in random order."""
    return torch.randperm(of, generator=rng, device=rng.device)[:n]
