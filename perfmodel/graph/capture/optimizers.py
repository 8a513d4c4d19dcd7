"""The optimizers that have a name, and two that torch.optim lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from perfmodel.errors import CaptureError, UnknownNameError

__all__ = ["OPTIMIZERS", "Lamb", "Lion", "OptimizerLike", "check_optimizer", "kind_of", "make_optimizers"]

#: A name of :data:`OPTIMIZERS`; a function of the parameters that returns an optimizer or several; or none.
OptimizerLike = str | Callable[[Any], Optimizer | Sequence[Optimizer]] | None


class Lamb(Optimizer):
    """Layer-wise adaptive moments (You et al. 2019, "Large Batch Optimization for Deep Learning", algorithm 2).

    Adam's direction with decoupled weight decay, ``u = m / (sqrt(v) + eps) + weight_decay w``, scaled for each
    tensor by the trust ratio ``|w| / |u|``; 1 where either norm is 0, as in the authors' code.

    Parameters
    ----------
    params : iterable
    lr : float
    betas : tuple of float
        Decay of the first and of the second moment.
    eps : float
    weight_decay : float
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; the closure, if given, is run first and its result is returned."""
        loss = _evaluated(closure)
        for group, parameter, gradient in _with_gradients(self):
            beta1, beta2 = group["betas"]
            state = self.state[parameter]
            if not state:
                state["step"] = 0
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["step"] += 1
            first, second = state["exp_avg"], state["exp_avg_sq"]
            first.lerp_(gradient, 1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            denominator = (second / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
            update = (first / (1 - beta1 ** state["step"])).div_(denominator)
            if group["weight_decay"]:
                update.add_(parameter, alpha=group["weight_decay"])
            weight, length = parameter.norm(), update.norm()
            # Chosen on the device: a branch on the norms would make the host wait for each tensor.
            ratio = torch.where((weight > 0) & (length > 0), weight / length, torch.ones_like(weight))
            parameter.sub_(update.mul_(ratio * group["lr"]))
        return loss


class Lion(Optimizer):
    """Evolved sign momentum (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", algorithm 2).

    Parameters
    ----------
    params : iterable
    lr : float
    betas : tuple of float
        Interpolation of the update, decay of the momentum.
    weight_decay : float
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; the closure, if given, is run first and its result is returned."""
        loss = _evaluated(closure)
        for group, parameter, gradient in _with_gradients(self):
            beta1, beta2 = group["betas"]
            state = self.state[parameter]
            if not state:
                state["exp_avg"] = torch.zeros_like(parameter)
            momentum = state["exp_avg"]
            update = momentum.lerp(gradient, 1 - beta1).sign_()
            if group["weight_decay"]:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-group["lr"])
            momentum.lerp_(gradient, 1 - beta2)
        return loss


def _evaluated(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _with_gradients(optimizer: Optimizer) -> Iterable[tuple[dict[str, Any], torch.Tensor, torch.Tensor]]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                yield group, parameter, parameter.grad


# -- by name -----------------------------------------------------------------------


def _of_all(make: Callable[..., Optimizer], **settings: Any) -> Callable[[nn.Module], list[Optimizer]]:
    def made(module: nn.Module) -> list[Optimizer]:
        return [make([p for p in module.parameters() if p.requires_grad], **settings)]

    return made


def _muon_and_adamw(module: nn.Module) -> list[Optimizer]:
    """Muon for hidden matrices, AdamW for the rest.

    Muon orthogonalises the update of a matrix that maps activations to activations. Embeddings, output layers,
    gains and biases aren't such maps, and its author leaves them to AdamW (Jordan 2024,
    kellerjordan.github.io/posts/muon; torch.optim.Muon says the same, and takes matrices only).
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    hidden = _hidden_matrices(module)
    rest = [parameter for parameter in trained if id(parameter) not in hidden]
    matrices = [parameter for parameter in trained if id(parameter) in hidden]
    made: list[Optimizer] = []
    if matrices:
        made.append(torch.optim.Muon(matrices))
    if rest:
        made.append(torch.optim.AdamW(rest, foreach=False, fused=False))
    return made


def _hidden_matrices(module: nn.Module) -> set[int]:
    """Ids of the matrices that are neither an embedding table nor the output layer.

    The output layer has as many rows as the largest table of embeddings (the vocabulary); in a module without
    embeddings it is the last matrix.
    """
    tables = [part.weight for part in module.modules() if isinstance(part, (nn.Embedding, nn.EmbeddingBag))]
    embedded = {id(table) for table in tables}
    matrices = [p for p in module.parameters() if p.dim() == 2 and id(p) not in embedded]
    vocabulary = max((table.shape[0] for table in tables), default=0)
    outputs = {id(p) for p in matrices if p.shape[0] == vocabulary} if tables else {id(p) for p in matrices[-1:]}
    return {id(p) for p in matrices} - outputs


#: Optimizers by name, one kernel a tensor and operation: what a captured step holds. Foreach and fused kernels are
#: the runtime's business. Each takes the module, since some treat embeddings unlike other matrices.
OPTIMIZERS: dict[str, Callable[[nn.Module], list[Optimizer]]] = {
    "adamw": _of_all(torch.optim.AdamW, foreach=False, fused=False),
    "adam": _of_all(torch.optim.Adam, foreach=False, fused=False),
    "sgd": _of_all(torch.optim.SGD, lr=1e-3, foreach=False, fused=False),
    "sgd-momentum": _of_all(torch.optim.SGD, lr=1e-3, momentum=0.9, foreach=False, fused=False),
    "adafactor": _of_all(torch.optim.Adafactor, foreach=False),
    "adagrad": _of_all(torch.optim.Adagrad, foreach=False, fused=False),
    "lamb": _of_all(Lamb),
    "lion": _of_all(Lion),
    "muon": _muon_and_adamw,
    "rmsprop": _of_all(torch.optim.RMSprop, foreach=False),
}


def check_optimizer(optimizer: Any) -> None:
    """Refuse what isn't an :data:`OptimizerLike`, before anything is captured.

    Raises
    ------
    CaptureError
        An optimizer that exists already: it holds other tensors than the capture's.
    UnknownNameError
        No such name.
    """
    if isinstance(optimizer, Optimizer):
        raise CaptureError(
            f"the optimizer must be a factory, not an instance that holds other parameters; write "
            f"optimizer=lambda parameters: torch.optim.{type(optimizer).__name__}(parameters, …)"
        )
    if isinstance(optimizer, str) and optimizer not in OPTIMIZERS:
        known = f"known are {', '.join(OPTIMIZERS)}, or pass a factory that takes the parameters"
        raise UnknownNameError("optimizer", optimizer, OPTIMIZERS, known)


def make_optimizers(
    optimizer: str | Callable[[Any], Any], module: nn.Module, trained: list[nn.Parameter]
) -> list[Optimizer]:
    """The optimizers that step one after the other.

    Raises
    ------
    CaptureError
        If a factory fails or returns something else.
    """
    if isinstance(optimizer, str):
        return OPTIMIZERS[optimizer](module)
    try:
        made = optimizer(trained) if callable(optimizer) else None
    except Exception as error:
        raise CaptureError(f"the optimizer factory failed: {type(error).__name__}: {error}; mend it") from error
    several = list(made) if isinstance(made, (list, tuple)) else [made]
    wrong = next((one for one in several if not isinstance(one, Optimizer)), None)
    if wrong is not None or not several or made is None:
        raise CaptureError(
            f"the optimizer factory returned {type(made).__name__}, not a torch.optim.Optimizer; pass a name "
            f"({', '.join(sorted(OPTIMIZERS))}) or a function of the parameters that returns one, or a list of them"
        )
    return several


def kind_of(optimizer: OptimizerLike, made: Sequence[Optimizer]) -> str | None:
    """What a graph's ``meta`` calls the optimizer: its name, or those of the classes that a factory made."""
    if optimizer is None or isinstance(optimizer, str):
        return optimizer
    names = sorted({type(one).__name__.lower() for one in made})
    return "muon" if names == ["adamw", "muon"] else "+".join(names)
