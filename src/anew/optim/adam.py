"""PyTorch's Adam and AdamW for a model on the engine: the same numbers and the same state, with less traffic.

A matrix's gradients stay in the engine's fp16 buffers; one pass reads them, moves weight and moments in float32 and
writes the fp16 weight where the engine reads it. Other parameters, such as norms and an adapter's many small matrices,
have a ``.grad`` as ever and are stepped by PyTorch's own fused kernel.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from anew.errors import UserError
from anew.frontend.layers import repeated_layers
from anew.frontend.loss.deferred import DeferringHead
from anew.frontend.model import session_of
from anew.optim.embedding import RowsEmbedding, hold_rows
from anew.optim.shares import large, shares
from anew.optim.step import Step
from anew.optim.update import Rule


class OnEngine(torch.optim.Adam):
    """What :class:`EngineAdam` and :class:`EngineAdamW` have in common."""

    def __init__(self, model: nn.Module, params: Any, *, overlap: bool | None = None, **settings: Any) -> None:
        super().__init__(params, **settings, fused=True)
        if self.defaults["amsgrad"] or self.defaults["maximize"] or isinstance(self.defaults["lr"], Tensor):
            raise UserError("the engine's optimizers take no amsgrad, maximize or lr as a tensor; use torch.optim's")
        session = session_of(model)
        self._held, self._writes, self._weights = session.held, session.writes, session.weights
        self.overlap = not session.device.emulated if overlap is None else overlap
        trained = [p for group in self.param_groups for p in group["params"]]
        self._large = {p for p in trained if _is_large(p)}
        for p in self._large:
            self._held.hold(p, later=self.overlap)
        weakref.finalize(self, self._held.release, list(self._large)).atexit = False  # then they have a .grad again
        hold_rows(model, session)
        self._clip = 1.0
        self._order = {p: i for i, p in enumerate(_by_need(model))}
        self._last: set[Tensor] = set()
        if self.overlap:
            self._outside = _outside(model) & self._large
            self._read_by_rows = _read_by_rows(model) & self._large
            _wait_before(model, self)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step with the gradients that there are; those of matrices are used up.

        With ``overlap`` it returns before all matrices are written: calls of the model wait for what they read.
        """
        self.settle()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        steps = dict(self._matrices())
        self._scale_small()
        for p in self._large:
            p.grad = None  # PyTorch's kernel steps what has a gradient
        super().step()
        self._last = {p for p, step in steps.items() if self.overlap and self._can_wait(p, step)}
        for p in sorted(steps, key=lambda p: (p in self._last, self._order.get(p, 0))):
            torch.autograd.graph.increment_version(p)
            self._start(p, steps[p]) if self.overlap else steps[p]()
        self._clip = 1.0
        return loss

    def _start(self, p: Tensor, step: Step) -> None:
        """Let the step be taken in the thread, share by share."""
        if p in self._last:
            self._writes.ahead.set(p, step.ahead)
        for part in step.parts:
            self._writes.start({p, part.weight}, part)

    def _can_wait(self, p: Tensor, step: Step) -> bool:
        """Whether a parameter can be stepped after all others: a table of which nobody waits for more than he reads.

        That is the loss region, which waits for each of its tiles, if the parts of the step are those; and embeddings,
        which compute the few rows that they look up.
        """
        tiles = self._held.tiles.find(p) or []
        by_tiles = [id(part.weight) for part in step.parts] == [id(tile.weight) for tile in tiles]
        return by_tiles and p in self._read_by_rows

    def _matrices(self) -> Iterator[tuple[Tensor, Step]]:
        """The matrices that have a gradient, and their step."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            decoupled = group["decoupled_weight_decay"]
            rule = Rule(beta1, beta2, group["eps"], group["lr"], group["weight_decay"], decoupled, self._clip)
            for p in self._large.intersection(group["params"]):
                found = shares(p, self._held)
                self._held.forget(p)
                if not found:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32)
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                state["step"] += 1
                yield p, Step(p, found, state, rule.numbers(state["step"].item()), self._weights)

    def clip_norm(self, most: float) -> float:
        """Return the norm of all gradients; the next step scales them to ``most`` if it is larger. 0 clips nothing."""
        norm = nn.utils.get_total_norm(self._small_gradients())
        large = [s.squares() for p in self._trained() if p in self._large for s in shares(p, self._held)]
        if large:
            norm = torch.tensor(math.sqrt(math.fsum([*large, norm.item() ** 2])), dtype=torch.float32)
        self._clip = float(torch.clamp(most / (norm + 1e-6), max=1.0)) if most else 1.0
        return norm.item()

    def _scale_small(self) -> None:
        small = self._small_gradients()
        if self._clip != 1.0 and small:
            torch._foreach_mul_(small, self._clip)

    def _small_gradients(self) -> list[Tensor]:
        return [p.grad for p in self._trained() if p.grad is not None and p not in self._large]

    def _trained(self) -> Iterator[Tensor]:
        for group in self.param_groups:
            yield from group["params"]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, those that are held too."""
        for p in self._large:
            self._held.forget(p)
        super().zero_grad(set_to_none)

    def settle(self) -> None:
        """Wait until every weight and moment is written; raises what went wrong in a thread."""
        self._writes.wait_all()
        for p in self._last:
            self._writes.ahead.discard(p)

    def to_grads(self) -> None:
        """Bring what is held into ``.grad``, in float32: for whoever looks there."""
        self.settle()
        for p in self._large:
            self._held.to_grad(p)

    def wait_outside(self) -> None:
        """Wait for the matrices that are read outside the model's repeated layers, but for tables that come last."""
        self._writes.wait(self._outside - self._last)

    def state_dict(self) -> dict[str, Any]:
        """That of PyTorch's optimizer, once all is written."""
        self.settle()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state, PyTorch's optimizer's too, once all is written."""
        self.settle()
        super().load_state_dict(state_dict)


class EngineAdam(OnEngine):
    """:class:`torch.optim.Adam` over the parameters of a model that :func:`anew.compile` compiled.

    Args:
        model: that model.
        params: parameters of it, or groups of them, as PyTorch's class takes them.
        overlap: take the steps of matrices in a thread of their own, beside the next forward pass, and look at a
            layer's gradients beside the backward pass of the next; by default on an engine of silicon. Numbers depend
            on it only where a lean program's gradients turn out to need their layer to be measured: the layers below
            then have begun with what it gave them.
        settings: further arguments of PyTorch's class.

    Raises UserError for a model that was not compiled, and for ``amsgrad``, ``maximize`` and a tensor as ``lr``.
    """


class EngineAdamW(OnEngine):
    """:class:`torch.optim.AdamW` likewise; arguments and errors are those of :class:`EngineAdam`."""

    def __init__(self, model: nn.Module, params: Any, *, weight_decay: float = 1e-2, **settings: Any) -> None:
        super().__init__(model, params, weight_decay=weight_decay, decoupled_weight_decay=True, **settings)


def settle(optimizer: torch.optim.Optimizer) -> None:
    """Wait until an optimizer has written all weights and moments: before anything reads them outside the model."""
    if isinstance(optimizer, OnEngine):
        optimizer.settle()


def clip_norm(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], most: float) -> float:
    """Return the norm of the gradients of an optimizer's parameters; its next step uses them scaled to ``most``.

    A ``most`` of 0 clips nothing. ``parameters`` are those of the optimizer in the order that PyTorch adds them in.
    """
    if isinstance(optimizer, OnEngine):
        return optimizer.clip_norm(most)
    return nn.utils.clip_grad_norm_(parameters, most or math.inf).item()


def _is_large(p: Tensor) -> bool:
    plain = p.dtype == torch.float32 and p.is_contiguous() and p.device.type == "cpu"
    return plain and large(p.shape)


def _outside(model: nn.Module) -> set[Tensor]:
    inside = {p for layer in repeated_layers(model) for p in layer.parameters()}
    return {p for p in model.parameters() if p not in inside}


def _read_by_rows(model: nn.Module) -> set[Tensor]:
    """Weights of which embeddings read rows, a deferred head's logits all of it when they must, and nothing else."""
    readers = (RowsEmbedding, DeferringHead)
    owners: list[tuple[Tensor, bool]] = [
        (p, type(module) in readers) for module in model.modules() for p in module.parameters(recurse=False)
    ]
    return {p for p, _ in owners} - {p for p, by_rows in owners if not by_rows}


def _by_need(model: nn.Module) -> Iterable[Tensor]:
    """Parameters in the order in which a forward pass waits for them: first those outside the layers."""
    outside = _outside(model)
    return [*(p for p in model.parameters() if p in outside), *(p for p in model.parameters() if p not in outside)]


def _wait_before(model: nn.Module, optimizer: OnEngine) -> None:
    """Let calls of a model, and what asks for its state, wait for the optimizer as long as there is one."""
    reference = weakref.ref(optimizer)

    def wait(*_: Any, **__: Any) -> None:
        if (found := reference()) is not None:
            found.wait_outside()

    def wait_all(*_: Any, **__: Any) -> None:
        if (found := reference()) is not None:
            found.settle()

    model.register_forward_pre_hook(wait)
    model.register_state_dict_pre_hook(wait_all)
