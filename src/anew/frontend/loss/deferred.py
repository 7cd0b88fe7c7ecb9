"""Logits that are computed when something reads them: the loss region does not, and then they never exist."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from anew.errors import AnewError
from anew.frontend.held import wait_for

#: What may be asked of deferred logits without computing them.
_KNOWN_AHEAD = {
    Tensor.shape.__get__,  # type: ignore[attr-defined]
    Tensor.dtype.__get__,  # type: ignore[attr-defined]
    Tensor.device.__get__,
    Tensor.ndim.__get__,  # type: ignore[attr-defined]
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
}


class DeferringHead(nn.Linear):
    """What a model's output embedding becomes: an ``nn.Linear`` whose result is :class:`DeferredLogits`."""

    def forward(self, input: Tensor) -> Tensor:
        """Logits [..., vocabulary] of hidden states [..., features], deferred in plain fp32 eager mode."""
        plain = type(input) is Tensor and input.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if not plain or torch.compiler.is_compiling() or torch.jit.is_tracing():
            if not torch.compiler.is_compiling():
                wait_for(self.weight)
            return super().forward(input)
        return DeferredLogits(input, self)


class DeferredLogits(Tensor):
    """Logits that any operation on them computes, once and with their gradient, as ``nn.Linear`` would have.

    Attributes:
        hidden: the hidden states, [..., features].
        head: weight and bias of the output embedding.
    """

    hidden: Tensor
    head: nn.Linear

    @staticmethod
    def __new__(cls: type[DeferredLogits], hidden: Tensor, head: nn.Linear) -> DeferredLogits:
        """Logits of a linear layer, not computed."""
        shape = (*hidden.shape[:-1], head.out_features)
        made: DeferredLogits = Tensor._make_wrapper_subclass(cls, shape, dtype=hidden.dtype, device=hidden.device)
        return made

    def __init__(self, hidden: Tensor, head: nn.Linear) -> None:
        self.hidden = hidden
        self.head = head
        self._weight = (head.weight, head.weight._version)
        self._grad_enabled = torch.is_grad_enabled()
        self._computed: Tensor | None = None

    @property
    def is_computed(self) -> bool:
        """Whether something has read the logits, and may have changed them."""
        return self._computed is not None

    def compute(self) -> Tensor:
        """The logits; raises AnewError when the weight has changed since the forward pass."""
        if self._computed is None:
            weight, version = self._weight
            if self.head.weight is not weight or weight._version != version:
                raise AnewError(
                    "these logits were not computed, as the loss did not need them, and the head's weight has changed "
                    'since; read outputs.logits before the optimizer steps, or compile with loss="apart"'
                )
            wait_for(weight)
            with torch.set_grad_enabled(self._grad_enabled):
                self._computed = F.linear(self.hidden, weight, self.head.bias)
        return self._computed

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run any operation on the logits themselves."""
        if func in _KNOWN_AHEAD or (func is Tensor.float and len(args) == 1):
            with torch._C.DisableTorchFunctionSubclass():
                return args[0] if func is Tensor.float else func(*args, **(kwargs or {}))
        args, kwargs = tree_map_only(DeferredLogits, DeferredLogits.compute, (tuple(args), dict(kwargs or {})))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Reached only by what goes around ``__torch_function__``, where autograd could not follow."""
        raise AnewError(f'{func} cannot read logits that the loss region left out; compile with loss="apart"')
