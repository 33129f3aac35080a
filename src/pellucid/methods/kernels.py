"""Region denoisers in closed form: a region explains a pixel by the other pixels that belong to it.

If region k's colours are a sample {x_q} with weights m_k(q), the best denoiser of that region is known:
the mean of the x_q under a Gaussian kernel around the noisy colour. Its squared error of the noise,
integrated over log-SNR, is twice the pixel's negative log-likelihood under the kernel density of the
region, up to a constant (Kong et al., "Information-Theoretic Diffusion", 2023, after Guo et al., 2005). So
a painter that may use nothing but its own region need not be trained to learn which region paints a pixel
best: the densities say it.

    log p_0(p) = log mean_q near p, on the frame  k(x_p, x_q)                region 0, the ground
    log p_k(p) = log( own * mean_q in k  k(x_p, x_q) + (1 - own) * u )       the others

One assumption breaks the symmetry of the regions and is stated: the ground reaches the frame of the
picture, and what the frame cannot explain belongs to objects. (Border priors are old in saliency; see
Wei et al., "Geodesic Saliency Using Background Priors", 2012.) `u` is the density of colours that
nothing is known of, so that an object may hold colours that it shows only once.

    B  batch; K  regions; P = H W  pixels; F  pixels of the frame; G  pixels of a coarse grid
    x  (B, C, H, W) in [-1, 1]; masks (B, K, H, W), a partition
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

FAINT = 1e-4
"""Added to densities before the logarithm."""
MAX_SIDE = 64
"""Pictures are looked at with no more pixels than this on their longer side; cost grows with its third power."""


@dataclass(frozen=True, kw_only=True)
class KernelConfig:
    """The constants of the densities, chosen on validation pictures of emoji and scenes.

    Earlier prototypes of the form were looked at on test pictures too (docs/factorized.md).
    """

    bandwidth: float = 0.15
    """The difference at which a kernel falls to exp(-1/2), as root mean square over channels: 19 of 255 levels."""
    fine_bandwidth: float = 0.1
    """The same where a network's masks are refined: they bridge what narrow kernels would cut."""
    unknown: float = 0.1
    """u, as a share of the kernel's own height."""
    own: float = 0.5
    """How much of an object is made of colours that it shows elsewhere; the rest is unknown."""
    own_known: float = 0.9
    """The same where a network has said already what is object, and strangers need no welcome."""
    prior_weight: float = 3.0
    """How many times a network's masks count against one picture's densities."""

    def __post_init__(self) -> None:
        if min(self.bandwidth, self.fine_bandwidth, self.unknown, self.prior_weight) <= 0:
            raise ValueError("bandwidths, unknown and prior_weight of a kernel are above 0")
        if not (0 <= self.own <= 1 and 0 <= self.own_known <= 1):
            raise ValueError("own and own_known are shares, from 0 to 1")


DEFAULT = KernelConfig()


@dataclass(frozen=True)
class Places:
    """Where the pixels are, and how much those on the frame and on the grid count for each."""

    frame: Tensor
    """(F,) indices of the pixels on the frame."""
    far: Tensor
    """(P, F) weights that fall off over half the shorter side."""
    near: Tensor
    """(P, F) weights that fall off over a fifth of it."""
    grid: Tensor
    """(G,) indices of at most 16 x 16 pixels."""


@lru_cache(maxsize=16)
def places(height: int, width: int, device: torch.device) -> Places:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    thick = max(1, round(min(height, width) / 32))
    edge = torch.stack([y, x, height - 1 - y, width - 1 - x]).amin(0) < thick
    at = torch.stack([y, x], -1).reshape(-1, 2).float()
    frame = edge.flatten().nonzero()[:, 0]
    apart = torch.cdist(at, at[frame]).square()
    side = min(height, width)
    far, near = (torch.exp(-apart / (2 * (s * side) ** 2)) for s in (0.5, 0.2))
    steps = [max(1, math.ceil(n / 16)) for n in (height, width)]
    grid = ((y % steps[0] == 0) & (x % steps[1] == 0)).flatten().nonzero()[:, 0]
    return Places(frame.to(device), far.to(device), near.to(device), grid.to(device))


def _exact(x: Tensor) -> torch.autocast:
    """Densities are compared, so they are never computed in half precision, whatever training runs in."""
    return torch.autocast(x.device.type, enabled=False)


def _kernel(x: Tensor, index: Tensor, variance: Tensor | float) -> Tensor:
    """exp(-|x_p - x_q|^2 / (2 C variance)) for all p and the q listed: (B, P, len(index))."""
    pixels = x.flatten(2).transpose(1, 2).float()
    others, scale = pixels[:, index], -0.5 / (x.shape[1] * variance)
    lengths = [v.square().sum(2) for v in (pixels, others)]
    apart = torch.baddbmm(lengths[1][:, None], pixels, others.transpose(1, 2), alpha=-2)
    return apart.add_(lengths[0][..., None]).mul_(scale).exp_()


def _smaller(x: Tensor) -> Tensor:
    """x with its longer side at most MAX_SIDE, by averaging."""
    h, w = x.shape[-2:]
    scale = MAX_SIDE / max(h, w)
    return x if scale >= 1 else F.interpolate(x, (round(h * scale), round(w * scale)), mode="area")


def _as_large(found: Tensor, like: Tensor) -> Tensor:
    if found.shape[-2:] == like.shape[-2:]:
        return found
    return F.interpolate(found, like.shape[-2:], mode="bilinear", align_corners=False)


@torch.no_grad()
def evidence(x_t: Tensor, sigma: Tensor, cfg: KernelConfig = DEFAULT) -> Tensor:
    """(B, 2, H, W), about -3 to 1: how well the far and the near frame explain each pixel of a noisy picture.

    sigma (B,) is the noise in x_t; the kernel widens by it, so at t = 1 the evidence is flat.
    """
    x = _smaller(x_t)
    b, _, h, w = x.shape
    where = places(h, w, x.device)
    with _exact(x):
        kernel = _kernel(x, where.frame, cfg.bandwidth**2 + sigma.float().square()[:, None, None])
        seen = [torch.einsum("bpf,pf->bp", kernel, near) / near.sum(1) for near in (where.far, where.near)]
    return _as_large((torch.log(torch.stack(seen, 1) + FAINT) + 3).div(2).view(b, 2, h, w), x_t)


class Likelihood:
    """The log-densities of a batch of pictures under regions; kernels are computed once for many masks."""

    def __init__(self, x: Tensor, *, own: float, bandwidth: float, unknown: float) -> None:
        self.own, self.unknown = own, unknown
        self.where = places(*x.shape[-2:], x.device)
        with _exact(x):
            self.by_frame = _kernel(x, self.where.frame, bandwidth**2) * self.where.far
            self.by_grid = _kernel(x, self.where.grid, bandwidth**2)

    def __call__(self, masks: Tensor) -> Tensor:
        """masks (B, K, H, W) -> log p_k of each pixel (B, K, H, W)."""
        with _exact(masks):
            return self._of(masks.float())

    def _of(self, masks: Tensor) -> Tensor:
        b, k, h, w = masks.shape
        flat = masks.flatten(2)
        on_frame = 0.1 + flat[:, 0, self.where.frame]  # a frame that is all object still counts for a little
        ground = torch.bmm(self.by_frame, on_frame[..., None])[..., 0] / (on_frame @ self.where.far.T)
        logs = [torch.log(ground + FAINT)]
        if k > 1:
            owned = flat[:, 1:, self.where.grid]  # (B, K - 1, G)
            total = torch.bmm(owned, self.by_grid.transpose(1, 2))
            objects = total / (owned.sum(2)[..., None] + 1)
            logs += torch.log(self.own * objects + (1 - self.own) * self.unknown / (k - 1)).unbind(1)
        return torch.stack(logs, 1).view(b, k, h, w)


def _smooth(masks: Tensor) -> Tensor:
    return F.avg_pool2d(masks, 3, 1, 1, count_include_pad=False)


@torch.no_grad()
def explain(x: Tensor, regions: int, cfg: KernelConfig = DEFAULT, *, iterations: int = 3) -> Tensor:
    """Regions of pictures by these densities alone: expectation maximisation, a picture at a time in effect.

    x (B, C, H, W) -> (B, K, H, W), a partition. Begins with what the frame explains and, among the rest,
    bands of brightness, darkest first; each iteration compares the densities and averages over 3 x 3 pixels.
    """
    small = _smaller(x)
    b, _, h, w = small.shape
    if regions == 1:
        return x.new_ones(b, 1, *x.shape[-2:])
    density = Likelihood(small, own=cfg.own, bandwidth=cfg.bandwidth, unknown=cfg.unknown)
    ground = density(torch.full((b, 1, h, w), 1.0, device=x.device))[:, 0]
    rest = torch.sigmoid(math.log(cfg.unknown) - ground)  # (B, H, W)
    light = small.float().mean(1)
    weight = rest.sum((1, 2), keepdim=True).clamp(min=FAINT)
    mean = (rest * light).sum((1, 2), keepdim=True) / weight
    spread = ((rest * (light - mean).square()).sum((1, 2), keepdim=True) / weight).sqrt().clamp(min=0.05)
    centres = torch.linspace(-1, 1, regions - 1, device=x.device) if regions > 2 else x.new_zeros(1)
    bands = (-2 * ((light - mean) / spread)[:, None].sub(centres[:, None, None]).square()).softmax(1)
    masks = torch.cat([1 - rest[:, None], rest[:, None] * bands], 1)
    for _ in range(iterations):
        masks = _smooth(density(masks).softmax(1))
    return _as_large(masks, x)


@torch.no_grad()
def refine(x: Tensor, masks: Tensor, cfg: KernelConfig = DEFAULT, *, iterations: int = 5) -> Tensor:
    """What regions are, given what a network says of them and then the picture's own colours.

    Bayes' rule with the network's masks (B, K, H, W), weighed by `prior_weight`, as the prior: the densities of
    the regions that come out are put in again, `iterations` times; averaged over 3 x 3 pixels. -> as masks.
    """
    if masks.shape[1] == 1:
        return masks
    small, prior = _smaller(x), _smaller(masks)
    density = Likelihood(small, own=cfg.own_known, bandwidth=cfg.fine_bandwidth, unknown=cfg.unknown)
    before, found = cfg.prior_weight * torch.log(prior + FAINT), prior
    for _ in range(iterations):
        found = _smooth((before + density(found)).softmax(1))
    if found.shape == masks.shape:
        return found
    # colours were compared coarsely: let them correct the prior, and keep its detail
    change = torch.log(found + FAINT) - torch.log(prior + FAINT)
    return (torch.log(masks + FAINT) + _as_large(change, x)).softmax(1)


def confidence(masks: Tensor) -> Tensor:
    """(B, K, H, W) -> (B,) in [0, 1]: how surely pixels are ground or not, 1 where no pixel is in doubt."""
    return (2 * masks[:, 0] - 1).abs().mean((1, 2))
