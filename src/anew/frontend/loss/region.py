"""The loss region of a session: cross-entropy of a linear head, and its gradients, tile by tile.

With ``S`` the sum of ``exp(logit - largest)`` over every column but the label's, and ``z`` the label's logit:

    gap          = largest + log(S) - z
    loss         = log(1 + exp(gap))
    wrong        = 1 - P(label) = sigmoid(gap)
    d loss/d h   = wrong * (sum of exp(logit - largest) / S * weight rows  -  the label's weight row)

The engine gives ``largest``, the sums and the products with ``exp(logit - largest)``. ``z``, the label's rows and all
that is one number a token are the host's, in fp32. The usual ``P - Y`` subtracts nearly equal numbers wherever a model
is sure of its answer, one of them with the error of fp16 logits. Here nothing cancels, and fp16 holds the exponentials
equally well however small ``wrong`` is.

The exponentials are computed again in the backward pass, or saved on the engine by the largest logit of their tile,
whichever is cheaper (:mod:`.cost`); a factor for each token and tile then brings them to the largest of all.

The norm before the head stays on the host: it is one pass over [tokens, features], and its result then is rounded to
fp16 just once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from anew.compiler.gains import log_gains
from anew.frontend.held import MOST, HeldGradients, OfArgument, wait_for
from anew.frontend.instances import ByTensor
from anew.frontend.loss.cost import gain_of_saving, tiling_for
from anew.frontend.loss.programs import Shape, backward, compile_function, forward
from anew.frontend.loss.tiling import Tile, Tiling
from anew.frontend.region import GraphCall
from anew.frontend.segment import Segment
from anew.frontend.session import Session
from anew.frontend.table_gradient import Part, TableGradient

#: The label of a token that does not count.
NO_LABEL = -1


@dataclass(frozen=True)
class Head:
    """Operands of a loss: hidden states [tokens, features], weight [vocabulary, features], bias, labels [tokens].

    Labels are columns of the vocabulary, or ``NO_LABEL``. Tensors are fp32.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Tensor

    @property
    def label_rows(self) -> Tensor:
        """Each token's row of the weight; row 0 where it has none."""
        return self.target.clamp_min(0)

    def label_logits(self) -> Tensor:
        """The logit of each token's label, [tokens]."""
        logits = (self.hidden * self.weight[self.label_rows]).sum(1)
        return logits if self.bias is None else logits + self.bias[self.label_rows]


@dataclass(frozen=True)
class Mass:
    """What the forward pass knows of each token, [tokens, 1] each: ``largest`` and ``S`` of the module's text.

    ``shares`` [tokens, tiles] is ``exp(largest of the tile - largest)``, padded. ``kept`` are the tiles' exponentials,
    by the tile's largest logit, of one chunk after the other: fp16 on the engine, and none where they are computed
    again.
    """

    largest: Tensor
    total: Tensor
    shares: Tensor
    kept: tuple[Tensor, ...] = ()


class LossRegion:
    """The loss programs of one session and the heads' weights as uploaded."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.weights = session.weights
        self.views: ByTensor[dict[int, list[Tensor]]] = ByTensor()
        self.programs: dict[tuple[Shape, bool, bool, int], GraphCall] = {}
        self.names: dict[Shape, str] = {}
        self.tilings: dict[tuple[int, int], dict[int, Tiling]] = {}  # by vocabulary and features; by tokens
        self.saves: dict[tuple[Shape, Tiling], bool] = {}
        #: Tiles whose gradients stay in their buffers, while the backward programs run that give them.
        self.held = HeldGradients()

    def losses(self, head: Head, *, keep: bool) -> tuple[Tensor, Tensor, Mass]:
        """Each token's loss and ``wrong``, [tokens], both 0 where it has no label; and what the backward pass needs.

        ``keep``: a backward pass may follow.
        """
        # A run of a tile waits for the tile's own rows: an optimizer that lets this region begin before the weight is
        # whole steps it by these very tiles.
        mass = self._mass(head, keep)
        wait_for(head.weight)
        gap = (mass.largest + mass.total.log()).squeeze(1) - head.label_logits()
        labelled = head.target != NO_LABEL
        return F.softplus(gap).where(labelled, 0.0), gap.sigmoid().where(labelled, 0.0), mass

    def _mass(self, head: Head, keep: bool) -> Mass:
        tiling = self._tiling(head)
        shape = _shape(head, tiling)
        saves = self._saves(shape, tiling)
        keep = keep and saves
        call = self._forward(shape, "forward" if keep or not saves else "inference", keep=keep)
        chunks, kept = [], []
        for rows in tiling.chunks():
            found = [call(arguments) for _, arguments in self._arguments(head, tiling, rows)]
            chunks.append(_combined([largest for largest, *_ in found], [sums for _, sums, *_ in found]))
            kept += [mass for *_, mass in found if keep]
        for saved in kept:  # which the backward program then need not find out
            self.session.device.buffers.note(saved, 1.0)
        largest, total, shares = map(torch.cat, zip(*chunks, strict=True))
        return Mass(largest[: tiling.tokens], total[: tiling.tokens], shares, tuple(kept))

    def gradients(
        self, head: Head, mass: Mass, factor: Tensor, *, hidden: bool, weight: bool, bias: bool
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of the hidden states, the weight and the bias, those that are wanted.

        ``factor`` [tokens] is the loss's cotangent times ``wrong``. That of a weight that the session holds stays there
        if it can.
        """
        factor = factor.unsqueeze(1)
        ratio = factor / mass.total
        states = F.pad(head.hidden, (0, 1), value=1.0) if bias else head.hidden
        of_hidden, of_weight = self._products(head, mass, ratio * states if weight or bias else None, hidden)
        if of_hidden is not None:
            of_hidden.mul_(ratio).sub_(factor * head.weight[head.label_rows])
        if of_weight is None:
            return of_hidden, None, None
        if isinstance(of_weight, TableGradient):
            of_weight.add(head.label_rows, factor * states, alpha=-1)
            self.session.held.add_table(head.weight, of_weight)
            return of_hidden, None, None
        of_weight.index_add_(0, head.label_rows, factor * states, alpha=-1)
        features = head.hidden.shape[1]
        return of_hidden, of_weight[:, :features].contiguous() if weight else None, of_weight[:, -1] if bias else None

    def _products(
        self, head: Head, mass: Mass, cotangent: Tensor | None, hidden: bool
    ) -> tuple[Tensor | None, Tensor | TableGradient | None]:
        """``exp(logits - largest) @ weight`` and ``exp(logits - largest).T @ cotangent``, those that are wanted."""
        tiling = self._tiling(head)
        width = 0 if cotangent is None else cotangent.shape[1]
        call = self._backward(_shape(head, tiling), kept=bool(mass.kept), hidden=hidden, width=width)
        of_hidden = torch.zeros(tiling.padded, head.hidden.shape[1]) if hidden else None
        table = self._table(head, tiling, width)
        of_weight = torch.empty(len(head.weight), width) if width and table is None else None
        for rows, tile, share, arguments in self._backward_arguments(head, tiling, mass, cotangent):
            results = call(arguments)
            if of_hidden is not None:
                of_hidden[rows].addcmul_(results[0], share)
            if of_weight is not None:
                part, own = of_weight[tile.span][tile.overlap :], results[-1][tile.overlap :]
                part.copy_(own) if rows.start == 0 else part.add_(own)
        of_hidden = None if of_hidden is None else of_hidden[: tiling.tokens]
        return of_hidden, of_weight if table is None else self._collected(table, tiling)

    def _table(self, head: Head, tiling: Tiling, width: int) -> TableGradient | None:
        """What collects the weight's gradient where the engine writes it; None if it is to be copied for autograd."""
        views = self._views(head.weight, tiling)
        self.held.release(views)
        held = self.session.held
        if width != head.hidden.shape[1] or not held.holds(head.weight):
            return None
        parts = [Part(view, tile.start, tile.overlap) for view, tile in zip(views, tiling.tiles, strict=True)]
        held.tiles.set(head.weight, parts)
        if not held.takes_table(head.weight) or tiling.padded > MOST * tiling.rows:
            return None
        for view in views:
            self.held.hold(view)
        return TableGradient(head.weight, [replace(part, pieces=[]) for part in parts])

    def _collected(self, table: TableGradient, tiling: Tiling) -> TableGradient | Tensor:
        """The table with what was held of its tiles; all NaN where cotangents that are no numbers gave no products."""
        for part in table.parts:
            part.pieces = self.held.take(part.weight)
        if any(len(part.pieces) * tiling.rows < tiling.padded for part in table.parts):
            return table.dense().fill_(math.nan)
        return table

    def _tiling(self, head: Head) -> Tiling:
        sizes = len(head.weight), head.hidden.shape[1]
        known = self.tilings.setdefault(sizes, {})
        tokens = len(head.hidden)
        if tokens not in known:
            columns = next((tiling.tiles[0].size for tiling in known.values()), None)
            known[tokens] = tiling_for(tokens, *sizes, self.session.device.chip, columns)
        return known[tokens]

    def _saves(self, shape: Shape, tiling: Tiling) -> bool:
        """Whether the backward pass gets the exponentials saved."""
        key = shape, tiling
        if key not in self.saves:
            gain = gain_of_saving(self._name(shape), shape, tiling, self.session.device.chip)
            log_gains([gain] if gain else [])
            self.session.gains += [gain] if gain else []
            self.saves[key] = gain is not None
        return self.saves[key]

    def _arguments(self, head: Head, tiling: Tiling, rows: slice) -> Iterator[tuple[Tile, list[Tensor]]]:
        """Each tile with the arguments of the forward program, in the order of :meth:`Shape.ports`."""
        shape = _shape(head, tiling)
        hidden, target = tiling.cut(head.hidden, rows), tiling.cut(head.target, rows, NO_LABEL)
        for tile, weight in zip(tiling.tiles, self._views(head.weight, tiling), strict=True):
            column = [tile.column(head.bias)] if shape.column else []
            yield tile, [hidden, weight, *tile.labels(target), *column]

    def _backward_arguments(
        self, head: Head, tiling: Tiling, mass: Mass, cotangent: Tensor | None
    ) -> Iterator[tuple[slice, Tile, Tensor, list[Tensor]]]:
        """Each chunk and tile with what its ``mass @ weight`` is multiplied by, and :meth:`Shape.backward_ports`."""
        kept, one = iter(mass.kept), torch.ones(())
        for rows in tiling.chunks():
            cotangents = [] if cotangent is None else [tiling.cut(cotangent, rows)]
            if not mass.kept:
                largest = tiling.cut(mass.largest, rows)
                for tile, arguments in self._arguments(head, tiling, rows):
                    yield rows, tile, one, [*arguments, largest, *cotangents]
                continue
            shares = mass.shares[rows].split(1, 1)
            for tile, weight, share in zip(tiling.tiles, self._views(head.weight, tiling), shares, strict=True):
                yield rows, tile, share, [weight, next(kept), *([share] if cotangents else []), *cotangents]

    def _views(self, weight: Tensor, tiling: Tiling) -> list[Tensor]:
        """The weight's rows of each tile, the same tensors at every call: uploads and scales are known by them."""
        known = self.views.get(weight, dict)
        if weight.data_ptr() not in known:
            known.clear()
            views = known[weight.data_ptr()] = [weight.detach()[tile.span] for tile in tiling.tiles]
            for tile, view in zip(tiling.tiles, views, strict=True):
                self.session.scales.name_part(view, weight, f"from row {tile.start}")
        return known[weight.data_ptr()]

    def _forward(self, shape: Shape, direction: str, *, keep: bool) -> GraphCall:
        key = shape, keep, False, 0
        if key not in self.programs:
            name, function = f"{self._name(shape)} {direction}", forward(keep=keep)
            self.programs[key] = compile_function(
                self.session, self.weights, name, function, shape.ports(), {2: True} if keep else {}
            )
        return self.programs[key]

    def _backward(self, shape: Shape, *, kept: bool, hidden: bool, width: int) -> GraphCall:
        """The program that gives those products; ``width``: columns of its cotangent."""
        key = shape, kept, hidden, width
        if key not in self.programs:
            wanted = {"hidden": hidden, "weight": width >= shape.features, "bias": width > shape.features}
            results = ", ".join(name for name, is_wanted in wanted.items() if is_wanted)
            name = f"{self._name(shape)} backward to {results}"
            function = backward(hidden=hidden, weight=bool(width), kept=kept)
            ports = shape.backward_ports(width, kept=kept)
            call = self.programs[key] = compile_function(self.session, self.weights, name, function, ports)
            if width and isinstance(call.run, Segment):
                call.run.holding = OfArgument(self.held, list(ports).index("weight"), result=int(hidden))
        return self.programs[key]

    def _name(self, shape: Shape) -> str:
        if shape not in self.names:
            self.names[shape] = f"{self.session.name_region()} loss"
        return self.names[shape]


def shape_of(tiling: Tiling, features: int, *, bias: bool) -> Shape:
    """The shape of a tile; something is added to its columns where there is a bias, or tiles overlap."""
    tile = tiling.tiles[0]
    return Shape(tiling.rows, tile.size, features, tile.block, bias or tiling.overlaps)


def _shape(head: Head, tiling: Tiling) -> Shape:
    return shape_of(tiling, head.hidden.shape[1], bias=head.bias is not None)


def _combined(largest: list[Tensor], sums: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The largest logit over all tiles, the sum relative to it, and each tile's share, of the tiles' own."""
    tops = torch.cat(largest, 1)
    top = tops.amax(1, keepdim=True)
    shares = torch.exp((tops - top).double())
    totals = torch.cat([s.sum(1, keepdim=True, dtype=torch.float64) for s in sums], 1)
    total = (totals * shares).sum(1, keepdim=True)
    return top, total.clamp_min(1.0).float(), shares.float()  # the largest itself counts 1; the null device gives 0


def loss_region(session: Session) -> LossRegion:
    """The loss region of a session, made on first use."""
    if session.loss is None:
        session.loss = LossRegion(session)
    return session.loss
