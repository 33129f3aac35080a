"""How attributes lie in a code: which part holds which, and whether an edit moves that one alone.

An attribute is something true of an image that has a few values, such as the shape or the colour of its
object. Models never see it; these metrics do, to say afterwards where it went. A value of -1 means unknown,
and such rows are left out for that attribute alone.

A part is several entries of a code that belong together, and is judged by what can be read from all of them
(`perplexity_matrix`). MIG, DCI and SAP judge single entries: they ask that one entry be one attribute, so a
rotation of the entries inside a part lowers them and does not change what the part holds. None of them knows
whether the decoder uses what it was given, which is what `edit_matrix` is for.

Accuracies stand beside `chance`. Every classifier is fitted on four fifths of the rows and scored on the
others, the same rows for all parts and attributes of a call.

Shapes: N samples, m attributes, D entries of a code, P parts of D_p entries. Attributes are whole numbers
from -1. Codes may lie on any device and be of any float type; results are float64 on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pellucid.metrics.information import code_information

INVERSE_PENALTY = 0.1
"""C of the logistic regression: each weight of standardised entries has a penalty of w^2 / 2C, set against
the summed log-loss of the rows fitted. Ten times more or less changes accuracies by some hundredths; with
this much, parts of 512 entries and attributes of 40 values are fitted in tens of steps."""
BINS = 20
"""Equal bins between the lowest and the highest value of an entry, as in Locatello et al. 2019."""
TREES = 10
"""For each attribute. More steady the importances, and cost time in proportion."""
SMALLEST_STEP = 1e-6
"""Below this the float32 numbers near 1 are too coarse to take the step."""


def perplexity_matrix(
    parts: Sequence[Tensor], attributes: Tensor, values: Sequence[int], *, seed: int = 0
) -> Tensor:
    """Accuracy with which each attribute can be read from each part by a linear classifier.

    Table 1 of DiffuseGAE (Leng et al. 2023, section 4.1), which gives the matrix its name, after the one in
    GZS-Net (Ge et al. 2021). It holds accuracies and no perplexities. In a code whose part i holds attribute
    i alone, the diagonal is near 1 and all else near `chance`.

    The classifier is multinomial logistic regression by scikit-learn, on entries standardised by the rows it
    is fitted on, with C = `INVERSE_PENALTY`. What is in a part in a way that it does not read counts as
    absent. Ten values one after the other along a single entry are such a way: the middle ones are read only
    with steep weights, which the penalty forbids. MIG and SAP see them.

    Args:
        parts: P tensors (N, D_p), one after another the parts of the same samples' codes.
        attributes: (N, m) whole numbers, -1 unknown.
        values: how many values each of the m attributes can have; they are 0 to that less one.
        seed: draws the fifth of the rows that is scored.

    Returns:
        (P, m) in [0, 1].

    Raises:
        ImportError: where scikit-learn is missing.
        ValueError: for other shapes or values, or an attribute that is known in too few rows.
    """
    _needs_scikit_learn()
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if not parts:
        raise ValueError("expected at least one part (N, D_p), got none")
    _check_values(attributes, values)
    codes = [_checked(part, attributes).numpy() for part in parts]
    accuracy = torch.zeros(len(parts), attributes.shape[1], dtype=torch.float64)
    for j, (truth, fitted, held) in enumerate(_rows(attributes, seed)):
        for p, x in enumerate(codes):
            reader = make_pipeline(StandardScaler(), LogisticRegression(C=INVERSE_PENALTY, max_iter=1000))
            reader.fit(x[fitted], truth[fitted])
            accuracy[p, j] = reader.score(x[held], truth[held])
    return accuracy


@dataclass(frozen=True, kw_only=True)
class Chance:
    """Accuracies of a reader who sees nothing; both (m,) float64."""

    uniform: Tensor
    """1 / |A| of each attribute's number of values: guessing all alike."""
    majority: Tensor
    """Share of the most frequent value in the known rows: what a classifier learns from labels alone."""


def chance(attributes: Tensor, values: Sequence[int]) -> Chance:
    """What accuracies of reading these attributes are to be compared with.

    Where values are not equally frequent a part that holds nothing scores near `majority`, not `uniform`.

    Args:
        attributes: (N, m) whole numbers, -1 unknown.
        values: how many values each of the m attributes can have; they are 0 to that less one.
    """
    _check_values(attributes, values)
    known = [column[column >= 0] for column in attributes.cpu().long().T]
    for j, column in enumerate(known):
        if not len(column):
            raise ValueError(f"attribute {j} is -1, unknown, in all {len(attributes)} rows: leave it out")
    return Chance(
        uniform=1 / torch.tensor(values, dtype=torch.float64),
        majority=torch.stack([column.bincount().max().double() / len(column) for column in known]),
    )


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How far the best entry for an attribute is ahead of the next best; both (m,) float64."""

    per_attribute: Tensor
    """The gap, from 0: no entry stands out."""
    highest: Tensor
    """What the best entry scored: tells a gap of 0 between two that know from one of two that do not."""

    @property
    def mean(self) -> float:
        """The gap, averaged over attributes: the figure that is usually printed."""
        return self.per_attribute.mean().item()


def mig(codes: Tensor, attributes: Tensor) -> Gap:
    """Mutual information gap (Chen et al. 2018): does one entry tell more of an attribute than any other?

        MIG_j = (I(z_(1); v_j) - I(z_(2); v_j)) / H(v_j)        entries in order of their information on v_j

    Each entry is cut into `BINS` equal bins between its lowest and its highest value, and information is that
    of the counts. Counts overstate it, for entries that know nothing by about (BINS - 1)(K - 1) / 2N nats
    with K values: `highest` is not 0 by chance, and the gap loses some of what is overstated. One outlier can
    empty most bins of an entry. Attributes of more than `BINS` values cannot reach 1.

    Args:
        codes: (N, D), D >= 2.
        attributes: (N, m) whole numbers, -1 unknown.

    Returns:
        gaps and highest information, as shares of the attribute's entropy, in [0, 1].

    Raises:
        ValueError: for other shapes or values, or an attribute with a single known value.
    """
    x = _with_rivals(_checked(codes, attributes))
    low, high = x.amin(0), x.amax(0)
    # An entry that is the same in all rows has a range of 0 and belongs in one bin.
    place = (x - low) / torch.where(high > low, high - low, 1.0)
    bins = (place * BINS).long().clamp(max=BINS - 1)  # the highest value closes the last bin
    scores = []
    for j, value in enumerate(attributes.cpu().long().T):
        known = value >= 0
        if len(value[known].unique()) < 2:
            raise ValueError(
                f"attribute {j} has {len(value[known].unique())} known values, and so no entropy to share: "
                "leave it out"
            )
        entropy = code_information(value[known], value[known])
        shares = [code_information(entry, value[known]) / entropy for entry in bins[known].T]
        scores.append(torch.tensor(shares, dtype=torch.float64))
    return _gap(torch.stack(scores))


def sap(codes: Tensor, attributes: Tensor, *, seed: int = 0) -> Gap:
    """Separated attribute predictability (Kumar et al. 2018): is an attribute read from one entry alone?

    The score of an entry is the balanced accuracy, the mean over values of the share that is read rightly,
    of a classifier that sees only this entry; the gap is between the two best entries. The paper cuts an
    entry at one threshold for attributes of two values. Here a decision tree by scikit-learn with classes of
    equal weight has as many leaves as the attribute has values: one threshold for two values, and for more
    of them as many as tell them apart, which a linear classifier on one entry could not.

    Args:
        codes: (N, D), D >= 2.
        attributes: (N, m) whole numbers, -1 unknown.
        seed: draws the fifth of the rows that is scored.

    Returns:
        gaps from 0 to 1 - 1/K for an attribute of K values, a little above where few rows are scored; highest
        accuracies in [0, 1], 1/K by chance.

    Raises:
        ImportError: where scikit-learn is missing.
        ValueError: for other shapes or values, or an attribute that is known in too few rows.
    """
    _needs_scikit_learn()
    from sklearn.metrics import recall_score
    from sklearn.tree import DecisionTreeClassifier

    x = _with_rivals(_checked(codes, attributes)).numpy()
    scores = torch.zeros(attributes.shape[1], x.shape[1], dtype=torch.float64)
    for j, (truth, fitted, held) in enumerate(_rows(attributes, seed)):
        leaves, present = len(set(truth[fitted])), sorted(set(truth[held]))
        for i in range(x.shape[1]):
            tree = DecisionTreeClassifier(max_leaf_nodes=leaves, class_weight="balanced", random_state=seed)
            read = tree.fit(x[fitted, i : i + 1], truth[fitted]).predict(x[held, i : i + 1])
            # Balanced accuracy by its definition: scikit-learn's own warns where a value was not held out.
            scores[j, i] = recall_score(truth[held], read, labels=present, average="macro")
    return _gap(scores)


@dataclass(frozen=True, kw_only=True)
class DCI:
    """Disentanglement, completeness and informativeness of a code."""

    disentanglement: float
    """1 where each entry serves one attribute, 0 where each serves all alike."""
    completeness: float
    """1 where each attribute is read from one entry, 0 where from all alike."""
    informativeness: Tensor
    """(m,) float64, accuracy of reading each attribute from the whole code, to be held against `chance`."""
    importances: Tensor
    """(D, m) float64, of each entry for each attribute; columns sum to 1."""


def dci(codes: Tensor, attributes: Tensor, *, seed: int = 0) -> DCI:
    """Disentanglement, completeness, informativeness (Eastwood & Williams 2018).

    From the importance R_ij of entry i for attribute j,

        D = sum_i w_i (1 - H_m(R_i. / sum_j R_ij)),        w_i = sum_j R_ij / sum_ij R_ij
        C = mean_j (1 - H_D(R_.j / sum_i R_ij))            H_b an entropy with logarithms to base b

    R are the impurity importances of a random forest by scikit-learn, `TREES` trees for each attribute.
    Every split looks at all entries. At the square root of them, which is the default, most splits do not
    see the entry that matters and take another, and a perfect code of 128 entries would have D below 0.5.

    Where the paper has the error of prediction, informativeness is the accuracy on rows held out. Low D and
    C say nothing of a code that holds nothing: they are near 0 for noise too. 2,000 rows of 128 entries take
    seconds.

    Args:
        codes: (N, D), D >= 2.
        attributes: (N, m) whole numbers, m >= 2, -1 unknown.
        seed: grows the trees, and draws the fifth of the rows that is scored.

    Raises:
        ImportError: where scikit-learn is missing.
        ValueError: for other shapes or values, codes that are the same in all rows, or an attribute that is
            known in too few rows.
    """
    _needs_scikit_learn()
    from sklearn.ensemble import RandomForestClassifier

    x = _with_rivals(_checked(codes, attributes)).numpy()
    m = attributes.shape[1]
    if m < 2:
        raise ValueError("got 1 attribute: entries that serve one of several need at least 2")
    importances = torch.zeros(x.shape[1], m, dtype=torch.float64)
    accuracy = torch.zeros(m, dtype=torch.float64)
    for j, (truth, fitted, held) in enumerate(_rows(attributes, seed)):
        forest = RandomForestClassifier(TREES, max_features=None, random_state=seed)
        forest.fit(x[fitted], truth[fitted])
        importances[:, j] = torch.from_numpy(forest.feature_importances_)
        accuracy[j] = forest.score(x[held], truth[held])
    if not (importances.sum(0) > 0).all():
        raise ValueError("codes are the same in all rows: no entry has importance")
    # Entries that no tree used weigh nothing, whatever their row is taken to be.
    of_entry = importances.sum(1)
    rows = importances / torch.where(of_entry > 0, of_entry, 1.0)[:, None]
    return DCI(
        disentanglement=(of_entry / of_entry.sum() @ _concentration(rows)).item(),
        completeness=_concentration(importances.T).mean().item(),
        informativeness=accuracy,
        importances=importances,
    )


def perceptual_path_length(
    render: Callable[[slice, Tensor], Tensor],
    distance: Callable[[Tensor, Tensor], Tensor],
    alphas: Tensor,
    *,
    epsilon: float = 1e-4,
    batch: int = 32,
) -> float:
    """How fast images change along paths between codes (Karras et al. 2019; DiffuseGAE, equation 13).

        PPL = E_alpha d(G(alpha), G(alpha + epsilon)) / epsilon^2

    over the middle 98 of 100 values: N // 100 of the lowest and as many of the highest are dropped, as a few
    paths that jump would carry the mean. Lower is smoother, and a generator that ignores its code scores 0:
    print it beside a figure of what the code moves.

    `distance` grows with the *square* of a small difference, as LPIPS and mean squared errors do; otherwise
    the figure depends on epsilon. It must take differences before it squares: |x|^2 + |y|^2 - 2xy and
    1 - cosine are rounding errors and nothing else at this epsilon.

    Rounding. Images at a distance of epsilon = 1e-4 differ in the fourth digit, and float32 has seven. Pixels
    in [-1, 1] that are rounded once add less than 1e-7 to a mean squared error over epsilon^2, where one
    pixel value along the whole path makes 1. A network whose pixels are off by 1e-6 adds 2e-4. Half
    precision, TF32 and 8-bit images add more than 1: images in any type but float32 and float64 are refused,
    and autocast and TF32 inside `render` are the caller's to turn off. Alphas are taken in float32, and what
    is divided by is the square of the step that was taken in it, not of the one asked for. Along smooth paths
    the figure hardly depends on epsilon: where 1e-3 gives much less than 1e-4, it was rounding.

    Args:
        render: takes which of the N paths, and where on each (B,) float32, and returns images (B, ...) in
            float32 or float64. Endpoints, noise and all else belong to the path: it is called twice with the
            same slice and must differ in alpha alone.
        distance: two batches of images to (B,).
        alphas: (N,) in [0, 1], where each path is measured. They go to `render` on their own device.
        epsilon: length of the step, from `SMALLEST_STEP` to 1.
        batch: most paths in a call of render.

    Raises:
        ValueError: for other shapes, ranges or types, or distances that are nan, inf or negative.
    """
    if alphas.ndim != 1 or not len(alphas) or not ((alphas >= 0) & (alphas <= 1)).all():
        raise ValueError(f"expected alphas (N,) in [0, 1], N >= 1, got {tuple(alphas.shape)}")
    if not SMALLEST_STEP <= epsilon <= 1 or batch < 1:
        raise ValueError(
            f"expected epsilon from {SMALLEST_STEP} to 1 and batch >= 1, got {epsilon} and {batch}"
        )
    here = alphas.detach().float()
    there = here + epsilon
    step = (there.double() - here.double()).cpu()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(alphas), batch):
            index = slice(start, min(start + batch, len(alphas)))
            images = [render(index, alpha[index]) for alpha in (here, there)]
            if any(x.dtype not in (torch.float32, torch.float64) for x in images):
                raise ValueError(
                    f"images are {images[0].dtype} and {images[1].dtype}, whose rounding is larger than a "
                    "step: render in float32"
                )
            apart = distance(*images)
            if apart.shape != here[index].shape:
                raise ValueError(
                    f"expected one distance of each pair, {tuple(here[index].shape)}, got "
                    f"{tuple(apart.shape)}: do not average over the batch"
                )
            parts.append(apart.double().cpu())
    length = torch.cat(parts) / step.square()
    # Written so that nan fails too.
    if not ((length >= 0) & (length < torch.inf)).all():
        raise ValueError("a distance is nan, inf or negative: images hold nan, or it is no distance")
    dropped = len(length) // 100
    return length.sort().values[dropped : len(length) - dropped].mean().item()


@dataclass(frozen=True, kw_only=True)
class EditMatrix:
    """What each edit did to what is read from the images."""

    matrix: Tensor
    """(m, m) float64 in [0, 1], row i the edit of attribute i. On the diagonal the share of images where it
    then reads as wanted; elsewhere the share where the reading of attribute j is no longer what it was."""

    @property
    def diagonal_dominant(self) -> bool:
        """Whether every diagonal entry is above all others in its row and in its column.

        Then each edit reaches its own attribute more often than it disturbs another, and than another edit
        disturbs it.
        """
        others = self.matrix.clone().fill_diagonal_(-torch.inf)
        return bool((self.matrix.diagonal() > torch.maximum(others.amax(0), others.amax(1))).all())


def edit_matrix(before: Tensor, after: Tensor, wanted: Tensor) -> EditMatrix:
    """Whether editing an attribute sets that one and leaves the others as they were.

    Readings are those of a classifier, so its mistakes are in the matrix: one that reads noise changes its
    mind often. An edit that asks for what is already there counts as reached without doing anything; ask for
    other values.

    Args:
        before: (N, m) whole numbers from 0, each attribute read from the images before editing.
        after: (m, N, m), the same read after the edit of attribute i, for each i.
        wanted: (m, N), the value that the edit of attribute i was to give each image.
    """
    if before.ndim != 2 or not before.numel():
        raise ValueError(f"expected readings before (N, m), got {tuple(before.shape)}")
    n, m = before.shape
    if after.shape != (m, n, m) or wanted.shape != (m, n):
        raise ValueError(
            f"readings before are {(n, m)}, so expected after {(m, n, m)} and wanted {(m, n)}, got "
            f"{tuple(after.shape)} and {tuple(wanted.shape)}"
        )
    for name, x in (("before", before), ("after", after), ("wanted", wanted)):
        if x.is_floating_point() or (x < 0).any():
            raise ValueError(
                f"{name} must be whole numbers from 0, got {x.dtype} from {x.min().item()}: take the argmax of "
                "probabilities, and leave out images whose value is unknown"
            )
    before, after, wanted = before.cpu(), after.cpu(), wanted.cpu()
    changed = (after != before).double().mean(1)  # (m, m)
    reached = (wanted == after.diagonal(dim1=0, dim2=2).T).double().mean(1)  # (m,)
    return EditMatrix(matrix=changed.diagonal_scatter(reached))


def _needs_scikit_learn() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError as e:
        raise ImportError("reading attributes needs scikit-learn: pip install 'pellucid[metrics]'") from e


def _check_attributes(attributes: Tensor) -> None:
    if attributes.ndim != 2 or not attributes.numel():
        raise ValueError(f"expected attributes (N, m), got {tuple(attributes.shape)}")
    if attributes.is_floating_point():
        raise ValueError(f"attributes are whole numbers, got {attributes.dtype}: give each value a number")
    if (attributes < -1).any():
        raise ValueError(f"attributes hold {attributes.min().item()}: values are from 0, and -1 is unknown")


def _check_values(attributes: Tensor, values: Sequence[int]) -> None:
    _check_attributes(attributes)
    if len(values) != attributes.shape[1]:
        raise ValueError(f"got {len(values)} numbers of values for {attributes.shape[1]} attributes")
    for j, (count, highest) in enumerate(zip(values, attributes.amax(0).tolist(), strict=True)):
        if count < 2 or highest >= count:
            raise ValueError(
                f"values[{j}]={count}, and attribute {j} goes up to {highest}: expected at least 2 values, "
                "numbered from 0"
            )


def _checked(codes: Tensor, attributes: Tensor) -> Tensor:
    """Codes (N, D) as float64 on the CPU."""
    _check_attributes(attributes)
    if codes.ndim != 2 or len(codes) != len(attributes) or not codes.numel():
        raise ValueError(
            f"expected codes (N, D) and attributes (N, m) of the same samples, got {tuple(codes.shape)} and "
            f"{tuple(attributes.shape)}"
        )
    if not codes.isfinite().all():
        raise ValueError("codes hold nan or inf: the encoder, or the images that it saw, probably do too")
    return codes.detach().cpu().double()


def _with_rivals(codes: Tensor) -> Tensor:
    if codes.shape[1] < 2:
        raise ValueError(f"codes have {codes.shape[1]} entry: to compare entries takes at least 2")
    return codes


def _rows(attributes: Tensor, seed: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each attribute its values (N,), and the known rows to fit on and to score on, as numpy arrays."""
    n = len(attributes)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    rows = []
    for j, truth in enumerate(attributes.cpu().long().T):
        held, fitted = (part[truth[part] >= 0] for part in (order[: n // 5], order[n // 5 :]))
        if len(truth[fitted].unique()) < 2 or not len(held):
            raise ValueError(
                f"attribute {j} has {len(truth[fitted].unique())} values in {len(fitted)} known rows to fit on "
                f"and {len(held)} known rows to score: expected 2 values and 1 row. Give more samples, or "
                "leave it out"
            )
        rows.append((truth.numpy(), fitted.numpy(), held.numpy()))
    return rows


def _gap(scores: Tensor) -> Gap:
    """From (m, D) scores of entries."""
    first, second = scores.topk(2, dim=1).values.unbind(1)
    return Gap(per_attribute=first - second, highest=first)


def _concentration(shares: Tensor) -> Tensor:
    """1 less the entropy of each row over the largest it could have: (A, B), rows sum to 1 -> (A,)."""
    largest = torch.tensor(float(shares.shape[1]), dtype=torch.float64).log()
    return 1 - torch.special.entr(shares).sum(1) / largest
