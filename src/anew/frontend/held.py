"""Weight gradients that stay where the engine wrote them, in fp16 with an exponent, until an optimizer reads them.

They are for optimizers of :mod:`anew.optim`, which ask for those of their parameters. Any other parameter gets a
``.grad`` in float32 as in PyTorch.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from anew.device.transfer import load, measure
from anew.frontend.instances import ByTensor
from anew.frontend.looks import Looks

if TYPE_CHECKING:
    from anew.frontend.table_gradient import Part, TableGradient

#: Gradients of one parameter that are held at a time: in fp16 they take the memory of one in float32.
MOST = 2


@dataclass
class Piece:
    """A gradient ``buffer * 2**exponent`` in a leased fp16 buffer; ``squares`` is the sum of its elements' squares."""

    buffer: Tensor
    exponent: int
    squares: float = math.nan

    def measure(self) -> float:
        """Find ``squares``; returns the largest magnitude in the buffer."""
        largest, squares = measure(self.buffer)
        self.squares = squares * 4.0**self.exponent
        return largest


#: Numbers of rows of a table, and their gradients; a number may stand there more than once.
Rows = tuple[Tensor, Tensor]


class HeldGradients:
    """The gradients that are held in a session, by parameter."""

    def __init__(self) -> None:
        self._pieces: ByTensor[list[Piece]] = ByTensor()
        self._later: ByTensor[bool] = ByTensor()
        self._rows: ByTensor[Rows | None] = ByTensor()
        self._tables: ByTensor[TableGradient] = ByTensor()
        #: The tiles that a head's weight is uploaded in.
        self.tiles: ByTensor[list[Part]] = ByTensor()
        #: What is still to be found out about those that were added; a look may replace what is in its piece.
        self.looks = Looks()

    def __len__(self) -> int:
        return len(self._pieces)

    def hold(self, parameter: Tensor, *, later: bool = False) -> None:
        """From now on hold this parameter's gradients; ``later``: they may be looked at after they were added."""
        self._pieces.set(parameter, [])
        self._later.set(parameter, later)

    def release(self, parameters: Iterable[Tensor]) -> None:
        """From now on these parameters' gradients are in ``.grad``; what is held of them is forgotten."""
        for parameter in parameters:
            self._pieces.discard(parameter)
            self._later.discard(parameter)
            self._rows.discard(parameter)
            self._tables.discard(parameter)
            self.tiles.discard(parameter)

    def holds(self, parameter: Tensor) -> bool:
        """Whether this parameter's gradients are held."""
        return self._pieces.find(parameter) is not None

    def later(self, parameters: Iterable[Tensor]) -> bool:
        """Whether gradients of all of these, of one layer at least, can be looked at later."""
        found = [self._later.find(parameter) for parameter in parameters]
        return bool(found) and all(found) and self.looks.possible

    def add(self, parameter: Tensor, piece: Piece) -> None:
        """Add one to a parameter's gradients; from the third on they are summed in ``.grad``."""
        pieces = self._pieces.get(parameter, list)
        pieces.append(piece)
        if len(pieces) > MOST or parameter.grad is not None:
            self.to_grad(parameter)

    def to_grad(self, parameter: Tensor) -> None:
        """Add what is held of a parameter to its ``.grad``, in float32 and in the order that it came in."""
        self._add_rows_up(parameter)
        terms = [load(piece.buffer, piece.exponent)[0] for piece in self.take(parameter)]
        if (table := self._tables.find(parameter)) is not None:
            self._tables.discard(parameter)
            terms.append(table.dense())
        for gradient in terms:
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    def takes_table(self, parameter: Tensor) -> bool:
        """Whether a table's gradient can be held: it is the first. One that is held already goes to ``.grad``."""
        if self._tables.find(parameter) is not None:
            self.to_grad(parameter)
        free = parameter.grad is None and self._rows.find(parameter) is None and not self.of(parameter)
        return free and self.holds(parameter)

    def add_table(self, parameter: Tensor, gradient: TableGradient) -> None:
        """Hold the gradient of a table that :meth:`takes_table`."""
        self._tables.set(parameter, gradient)

    def table(self, parameter: Tensor) -> TableGradient | None:
        """Return the gradient of a table that is held."""
        return self._tables.find(parameter)

    def add_rows(self, table: Tensor, ids: Tensor, rows: Tensor) -> None:
        """Hold gradients of some rows of a table, [n, columns]; ``ids`` [n] are the rows' numbers."""
        self._rows.set(table, (ids, rows))

    def join(self, parameter: Tensor) -> None:
        """Add what is held of a table's rows to the rest of its gradient, which then is of one kind: held, or dense."""
        self._add_rows_up(parameter)
        if self._tables.find(parameter) is not None and (parameter.grad is not None or self.of(parameter)):
            self.to_grad(parameter)

    def _add_rows_up(self, table: Tensor) -> None:
        """Add what is held of a table's rows to those rows alone, of the gradient that is held or in ``.grad``."""
        found = self._rows.find(table)
        if found is None:
            return
        self._rows.set(table, None)
        ids, places = found[0].unique(return_inverse=True)
        sums = torch.zeros(len(ids), table.shape[1]).index_add_(0, places, found[1])
        if (held := self._tables.find(table)) is not None:
            held.add(ids, sums)
            return
        if table.grad is None:
            table.grad = torch.zeros_like(table)
        table.grad.index_add_(0, ids, sums)

    def forget(self, parameter: Tensor) -> None:
        """Hold nothing of a parameter."""
        self.take(parameter)
        self._rows.set(parameter, None)
        self._tables.discard(parameter)

    def take(self, parameter: Tensor) -> list[Piece]:
        """Return what is held of a parameter, and hold it no longer."""
        pieces = self.of(parameter)
        if pieces:
            self._pieces.set(parameter, [])
        return pieces

    def of(self, parameter: Tensor) -> list[Piece]:
        """Return what is held of a parameter, once it is known to be good."""
        self.looks.settle()
        return self._pieces.find(parameter) or []


class Instances:
    """The arguments that a region was called with: a backward program reads only some of an instance's weights."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], list[weakref.ref[Tensor] | None]] = {}

    def remember(self, args: Sequence[Tensor]) -> None:
        """Note the parameters among the arguments of a call."""
        key = tuple(id(x) if isinstance(x, torch.nn.Parameter) else 0 for x in args)
        known = self._known.get(key)
        if known is None or any(ref and ref() is not x for ref, x in zip(known, args, strict=True)):
            self._known[key] = [weakref.ref(x) if i else None for i, x in zip(key, args, strict=True)]

    def parameters(self, read: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """All parameters, by position, of the one instance that has those of ``read``; none if several have."""
        alive = [[None if ref is None else ref() for ref in known] for known in self._known.values()]
        fitting = [known for known in alive if all(known[i] is x for i, x in read.items())]
        return {i: x for i, x in enumerate(fitting[0]) if x is not None} if len(fitting) == 1 and read else {}


class Holding(Protocol):
    """How a backward program finds the parameters whose gradients stay in their buffers, and where these go."""

    gradients: HeldGradients

    def parameters(self, args: Sequence[Tensor]) -> dict[int, Tensor]:
        """The parameters whose gradients are to be held, by the position of the result."""


@dataclass
class OfInstance:
    """Those of the region instance that a call is for.

    Attributes:
        gradients: where those that are held go.
        instances: of the region. read: the weights among the program's arguments, by position; their positions there.
    """

    gradients: HeldGradients
    instances: Instances
    read: Mapping[int, int]

    def parameters(self, args: Sequence[Tensor]) -> dict[int, Tensor]:
        """The instance's parameters that are held."""
        if not self.gradients:
            return {}
        found = self.instances.parameters({there: args[here] for here, there in self.read.items()})
        return {i: x for i, x in found.items() if self.gradients.holds(x)}


@dataclass
class OfArgument:
    """The gradient of the argument at the place ``weight``, which is the result at the place ``result``."""

    gradients: HeldGradients
    weight: int
    result: int

    def parameters(self, args: Sequence[Tensor]) -> dict[int, Tensor]:
        """That argument, if it is held."""
        return {self.result: args[self.weight]} if self.gradients.holds(args[self.weight]) else {}


class Writes:
    """What an optimizer still does to parameters in a thread of its own, one after the other.

    Attributes:
        ahead: of tables that are written last, what gives rows [n, columns] by number [n] as they will be.
    """

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._running: defaultdict[int, list[Future[None]]] = defaultdict(list)
        self.ahead: ByTensor[Callable[[Tensor], Tensor]] = ByTensor()

    def start(self, tensors: Iterable[Tensor], work: Callable[[], None]) -> None:
        """Do the work after that which was started before; these tensors are not to be read meanwhile."""
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="anew-optimizer")
        running = self._thread.submit(work)
        for x in tensors:
            self._running[id(x)].append(running)
            _writers.set(x, self)

    def wait(self, tensors: Iterable[Tensor]) -> None:
        """Wait until these tensors can be read; raises what went wrong in writing them."""
        if self._running:
            for x in tensors:
                for running in self._running.get(id(x), ()):
                    running.result()

    def wait_all(self) -> None:
        """Wait until all that was started can be read; raises what went wrong first."""
        running = dict.fromkeys(itertools.chain.from_iterable(list(self._running.values())))
        for work in running:
            work.exception()
        for key, works in list(self._running.items()):  # what another model's optimizer started meanwhile stays
            if all(work in running for work in works):
                del self._running[key]
        for work in running:
            work.result()


#: Whose thread has written a tensor, or still does.
_writers: ByTensor[Writes] = ByTensor()


def wait_for(tensor: Tensor) -> None:
    """Wait until a tensor can be read, whatever session's optimizer writes it; raises what went wrong in writing it."""
    if (writes := _writers.find(tensor)) is not None:
        writes.wait([tensor])
