"""An embedding whose gradient stays a gradient of rows: PyTorch makes a table of it that is zero nearly everywhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anew.frontend.held import wait_for
from anew.frontend.instances import ByTensor
from anew.frontend.session import Session

#: Where the gradients of a table's rows go. A copy of the module has another table, and plain gradients.
_sessions: ByTensor[Session] = ByTensor()


class RowsEmbedding(nn.Embedding):
    """What an ``nn.Embedding`` becomes whose table is stepped by an optimizer on the engine."""

    def forward(self, input: Tensor) -> Tensor:
        """The rows of the table."""
        session = _sessions.find(self.weight)
        held = session is not None and session.held.holds(self.weight)
        if session is None or not held or not self.weight.requires_grad or not torch.is_grad_enabled():
            wait_for(self.weight)
            return super().forward(input)
        rows: Tensor = _Rows.apply(input, self.weight, self.padding_idx, session)
        return rows


class _Rows(torch.autograd.Function):
    """The rows of a table, whose gradients are held."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, padding_idx: int | None, session: Session) -> Tensor:
        """Look the rows up; those of a table that is still to be written are computed ahead."""
        ctx.save_for_backward(input)
        ctx.weight, ctx.padding_idx, ctx.gradients = weight, padding_idx, session.held
        ahead = session.writes.ahead.find(weight)
        if ahead is not None and input.numel() and int(input.min()) >= 0 and int(input.max()) < len(weight):
            ids, places = input.unique(return_inverse=True)
            return F.embedding(places, ahead(ids))
        wait_for(weight)
        return F.embedding(input, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, None, None]:
        """Hand the rows' gradients over; to those of an earlier batch a table is added, in PyTorch's order."""
        (input,) = ctx.saved_tensors
        ctx.gradients.join(ctx.weight)
        if ctx.weight.grad is not None:
            padding = -1 if ctx.padding_idx is None else ctx.padding_idx
            table = torch.ops.aten.embedding_dense_backward(grad, input, len(ctx.weight), padding, False)
            return None, table, None, None
        ids, rows = input.flatten(), grad.flatten(0, -2)
        if ctx.padding_idx is not None:
            counts = ids != ctx.padding_idx
            ids, rows = ids[counts], rows[counts]
        ctx.gradients.add_rows(ctx.weight, ids, rows)
        return None, None, None, None


def hold_rows(model: nn.Module, session: Session) -> None:
    """Let the embeddings of a model whose tables are held give gradients of rows, in place."""
    for module in model.modules():
        plain = type(module) in (nn.Embedding, RowsEmbedding) and module.max_norm is None
        if plain and not module.scale_grad_by_freq and not module.sparse and session.held.holds(module.weight):  # type: ignore[arg-type]
            module.__class__ = RowsEmbedding
            _sessions.set(module.weight, session)  # type: ignore[arg-type]
