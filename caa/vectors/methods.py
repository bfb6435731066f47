"""Methods: two stacks of activations in, one direction out. Pure functions; they know no model and no text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from caa.vectors.letters import letter_weights

Method = Callable[[Tensor, Tensor], Tensor]
"""(positive [pair, d_model], negative [pair, d_model]) -> float32 [d_model], from the negative to the positive side.

Options are bound with `functools.partial(pca, component=1)`; swapping the two sides turns the direction round.
"""

Positive = Float[Tensor, "positive d_model"]
Negative = Float[Tensor, "negative d_model"]


def name_of(method: Method) -> str:
    """A method as a provenance and a table name it.

    >>> name_of(mean_difference), name_of(partial(pca, component=1))
    ('mean difference', 'pca, component=1')
    """
    if isinstance(method, partial):
        return ", ".join([name_of(method.func), *(f"{key}={value}" for key, value in method.keywords.items())])
    return getattr(method, "__name__", type(method).__name__).replace("_", " ")


def mean_difference(positive: Positive, negative: Negative) -> Float[Tensor, " d_model"]:
    """The mean of the positive side minus the mean of the negative one (CAA; Rimsky et al. 2024). Needs no pairs.

    >>> mean_difference(torch.tensor([[2.0, 0.0], [4.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    tensor([2., 0.])
    """
    return (positive.double().mean(0) - negative.double().mean(0)).float()


def balanced_mean(positive: Positive, negative: Negative, *, letters: Sequence[str] = ()) -> Float[Tensor, " d_model"]:
    """The mean over each letter's mean difference, so that uneven letters cancel too; the default of `extract`.

    `letters` are those of the positive answers, "" for none; whoever knows them gives them (`direction_of`). Where they
    are even or there are none this is `mean_difference`, the paper's own.

    >>> sides = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, -2.0]]), torch.zeros(3, 2)
    >>> balanced_mean(*sides, letters=list("AAB")), mean_difference(*sides)
    (tensor([1., 0.]), tensor([1.0000, 0.6667]))
    """
    if not letters:
        return mean_difference(positive, negative)
    weights = letter_weights(letters)
    each = torch.tensor([weights[name] for name in letters], dtype=torch.float64, device=positive.device)
    direction: Tensor = (each @ _paired(positive, negative)).float()
    return direction


def direction_of(method: Method, positive: Positive, negative: Negative, letters: Sequence[str]) -> Tensor:
    """What the method finds, told the letters of the positive answers if it asks for them."""
    if method is balanced_mean:
        return balanced_mean(positive, negative, letters=letters)
    return method(positive, negative)


Of = Literal["differences", "values"]


def pca(
    positive: Positive,
    negative: Negative,
    *,
    component: int = 0,
    of: Of = "differences",
    center: bool = False,
    rescale: bool = True,
) -> Float[Tensor, " d_model"]:
    """One principal component of the paired differences, or of the values of both sides together.

    Uncentered differences are the first right-singular vector of `positive - negative`. Centering takes the mean
    difference away, which is mostly the contrast itself, and leaves how pairs differ from each other; `repe` is for
    those who want to center. Values are always centered: their mean says what a text is, not what is contrasted.

    The sign is that of the mean difference. `rescale` gives the direction the length of the mean difference along it,
    so that multiplier 1 means the same at every layer and for every method; without, its length is 1.
    ValueError for differences of unequally many texts, and for a component that does not exist.

    >>> zero = torch.zeros(2, 2)
    >>> pca(torch.tensor([[3.0, 1.0], [3.0, -1.0]]), zero)
    tensor([3., 0.])
    >>> pca(torch.tensor([[3.0, 1.0], [3.0, -1.0]]), zero, center=True, rescale=False).abs()
    tensor([0., 1.])
    """
    directions = components(positive, negative, of=of, center=center)[0]
    return _oriented(_chosen(directions, component), positive, negative, rescale)


def repe(
    positive: Positive, negative: Negative, *, component: int = 0, rescale: bool = True, seed: int = 0
) -> Float[Tensor, " d_model"]:
    """The reader of representation engineering (Zou et al. 2023): centered differences, each pair's order by chance.

    With the order shuffled, centering takes next to nothing of the contrast away; over many pairs this is the
    uncentered `pca`. The sign comes from the classes as they are. A pair's coin depends on its place and on `seed`.

    >>> round(repe(torch.tensor([[3.0, 0.0]] * 8), torch.zeros(8, 2))[0].item(), 4)
    3.0
    """
    differences = _paired(positive, negative)
    generator = torch.Generator().manual_seed(seed)
    coins = torch.randint(0, 2, (len(differences), 1), generator=generator).to(differences.device) * 2 - 1
    directions = _singular(_centered(differences * coins))[0]
    return _oriented(_chosen(directions, component), positive, negative, rescale)


def components(
    positive: Positive, negative: Negative, *, of: Of = "differences", center: bool = False
) -> tuple[Float[Tensor, "component d_model"], Float[Tensor, " component"]]:
    """All principal components, orthonormal, and the share of the variance that each explains, largest first.

    Of uncentered differences "variance" is their mean squared length. The signs mean nothing here.

    >>> components(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 2))[1]
    tensor([0.9000, 0.1000])
    """
    if of == "values":
        return _singular(_centered(torch.cat([positive, negative]).double()))
    differences = _paired(positive, negative)
    return _singular(_centered(differences) if center else differences)


def mean_within(positive: Positive, negative: Negative, *, k: int) -> Float[Tensor, " d_model"]:
    """The mean difference within the subspace of the first k components of the uncentered differences.

    With k = 1 this is `pca`, with all components `mean_difference`: what lies between tells what one direction loses.

    >>> mean_within(torch.tensor([[3.0, 1.0], [3.0, -1.0]]), torch.zeros(2, 2), k=1)
    tensor([3., 0.])
    """
    span = subspace(positive, negative, k).double()
    return (span.T @ (span @ mean_difference(positive, negative).double())).float()


def subspace(positive: Positive, negative: Negative, k: int) -> Float[Tensor, "k d_model"]:
    """The first k components of the uncentered paired differences: orthonormal rows, the strongest first.

    >>> subspace(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 2), 1).abs()
    tensor([[1., 0.]])
    """
    directions = components(positive, negative)[0]
    if not 1 <= k <= len(directions):
        raise ValueError(f"a subspace of these differences has 1 to {len(directions)} directions, not {k}")
    return directions[:k]


def share_kept(directions: Float[Tensor, "k d_model"], positive: Positive, negative: Negative) -> float:
    """The share of the paired differences' squared length that lies in the span of the directions, from 0 to 1.

    What projecting on one direction loses is 1 minus this; give held-out pairs, or it flatters.

    >>> share_kept(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 1.0]]), torch.zeros(1, 2))
    0.9
    """
    differences = _paired(positive, negative)
    basis = torch.linalg.qr(directions.double().T.to(differences.device)).Q
    return float(((differences @ basis) ** 2).sum() / (differences**2).sum())


def logistic_probe(
    positive: Positive, negative: Negative, *, strength: float = 1.0, rescale: bool = True
) -> Float[Tensor, " d_model"]:
    """The normal of the plane by which a logistic regression (scikit-learn) tells the two sides apart. Needs no pairs.

    Activations are divided by their root mean square first, so that `strength` (scikit-learn's C; smaller is flatter)
    means the same at every layer. `rescale` is that of `pca`.

    >>> logistic_probe(torch.tensor([[2.0, 0.0], [4.0, 0.0]]), torch.tensor([[-2.0, 0.0], [-4.0, 0.0]]))
    tensor([6., 0.])
    """
    from sklearn.linear_model import LogisticRegression

    values = torch.cat([positive, negative]).double().cpu()
    labels = [1] * len(positive) + [0] * len(negative)
    probe = LogisticRegression(C=strength, tol=1e-8, max_iter=10_000)
    probe.fit((values / values.pow(2).mean().sqrt()).numpy(), labels)
    return _oriented(torch.from_numpy(probe.coef_[0]), positive, negative, rescale)


def random_direction(
    positive: Positive, negative: Negative, *, seed: int = 0, rescale: bool = True
) -> Float[Tensor, " d_model"]:
    """A control: a direction by chance, with the sign and the length that the two sides give it.

    >>> random_direction(torch.ones(1, 2), torch.zeros(1, 2), rescale=False).norm().item()
    1.0
    """
    drawn = torch.randn(positive.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return _oriented(drawn, positive, negative, rescale)


def _chosen(directions: Tensor, component: int) -> Tensor:
    if not 0 <= component < len(directions):
        raise ValueError(f"there is no component {component}: these activations have {len(directions)}, counted from 0")
    return directions[component]


def _oriented(direction: Tensor, positive: Tensor, negative: Tensor, rescale: bool) -> Tensor:
    """Of norm 1, pointing to the positive side; rescaled, as long as the mean difference is along it."""
    unit: Tensor = direction.double().to(positive.device) / direction.norm()
    along = (positive.double().mean(0) - negative.double().mean(0)) @ unit
    if rescale and abs(along) < 1e-9:
        raise ValueError("the two sides do not differ along this direction, so rescaled it would be nothing")
    if rescale:
        return (unit * along).float()
    return (-unit if along < 0 else unit).float()


def _paired(positive: Tensor, negative: Tensor) -> Any:
    if len(positive) != len(negative):
        raise ValueError(
            f"{len(positive)} positive and {len(negative)} negative texts are not pairs, so they have no differences; "
            "use mean_difference, logistic_probe or pca with of='values'"
        )
    return positive.double() - negative.double()


def _centered(values: Tensor) -> Tensor:
    return values - values.mean(0)


def _singular(values: Tensor) -> tuple[Tensor, Tensor]:
    """Right-singular vectors as rows, and the shares of their squared singular values."""
    _, lengths, directions = torch.linalg.svd(values, full_matrices=False)
    if not lengths.any():
        raise ValueError("these activations do not vary at all, so they have no components")
    return directions.float(), (lengths**2 / (lengths**2).sum()).float()
