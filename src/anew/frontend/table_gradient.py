"""The gradient of a head's table: where the engine wrote it, in fp16, but for few rows, to which the host adds.

To the rows of labels, and of what an embedding that shares the table looked up, numbers are added that the fp16 pieces
have no room for. Such rows are read to float32 and stand there from then on: their sums are those of a float32 table.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from anew.device.transfer import load
from anew.frontend.held import Piece


@dataclass
class Part:
    """The rows of one tile.

    Attributes:
        weight: the tile's rows of the table, known to the weight store. start: the first of them. overlap: so many of
            them belong to the tile before.
        pieces: terms of the gradient of all of them, one for each chunk of tokens.
    """

    weight: Tensor
    start: int
    overlap: int
    pieces: list[Piece] = field(default_factory=list)

    @property
    def rows(self) -> slice:
        """The rows of the table that are its own."""
        return slice(self.start + self.overlap, self.start + len(self.weight))

    def own(self) -> list[Piece]:
        """The terms of its own rows' gradient."""
        return [Piece(piece.buffer[self.overlap :], piece.exponent, piece.squares) for piece in self.pieces]

    def read(self, rows: Tensor, out: Tensor) -> None:
        """Write the gradient of these rows, by their place in the tile, to ``out``; squares count them no longer."""
        for number, piece in enumerate(self.pieces):
            term = piece.buffer[rows].float().mul_(2.0**piece.exponent)
            piece.squares -= float(term.double().square_().sum())
            out.add_(term) if number else out.copy_(term)


class TableGradient:
    """The gradient of a table [n, columns] by tiles.

    Attributes:
        parts: its tiles, in order.
        places: [n], int32; where a row's gradient is among ``rows``, or -1.
        rows: [k, columns]; the whole gradient of those rows.
    """

    def __init__(self, table: Tensor, parts: list[Part]) -> None:
        self.parts = parts
        self.places = torch.full((len(table),), -1, dtype=torch.int32)
        self.rows = torch.empty(0, table.shape[1])

    def add(self, ids: Tensor, rows: Tensor, alpha: float = 1.0) -> None:
        """Add ``alpha`` times [m, columns] to rows of these numbers, which may stand there more than once, in order."""
        self._take(ids[self.places[ids] < 0].unique())
        self.rows.index_add_(0, self.places[ids], rows, alpha=alpha)

    def _take(self, ids: Tensor) -> None:
        """Read these rows, sorted, to float32."""
        at = len(self.rows)
        rows = torch.empty(at + len(ids), self.rows.shape[1])
        rows[:at] = self.rows
        self.places[ids] = torch.arange(at, len(rows), dtype=torch.int32)
        for part in self.parts:
            own = ids[(ids >= part.rows.start) & (ids < part.rows.stop)]
            part.read(own - part.start, rows[at : at + len(own)])
            at += len(own)
        self.rows = rows

    def dense(self) -> Tensor:
        """All of it in float32, [n, columns]."""
        table = torch.empty(len(self.places), self.rows.shape[1])
        for part in self.parts:
            own = table[part.rows]
            for number, piece in enumerate(part.own()):
                term, _ = load(piece.buffer, piece.exponent)
                own.add_(term) if number else own.copy_(term)
        ids = (self.places >= 0).nonzero().squeeze(1)
        table[ids] = self.rows[self.places[ids]]
        return table
