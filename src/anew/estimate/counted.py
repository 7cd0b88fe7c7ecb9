"""What an estimate is of, and the amounts of one step that it counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from anew.frontend.scales import INTERVAL
from anew.projection import Work

if TYPE_CHECKING:
    from anew.finetune.options import FinetuneConfig


@dataclass(frozen=True)
class Setting:
    """What is trained how.

    Attributes:
        config: of transformers. seq_len: tokens of a row. batch_size: rows of a step.
        lora: rank of adapters on all linear layers; 0: all weights train. base_bits: of frozen weights as constants.
        tuning: of ``anew finetune``, where what trains is more than a rank says; then ``lora`` is left out.
    """

    config: Any
    seq_len: int
    batch_size: int
    lora: int = 0
    base_bits: int = 0
    tuning: FinetuneConfig | None = None

    @property
    def tunes(self) -> bool:
        """Whether embedding and head are frozen, with all or part of the layers' weights."""
        return bool(self.lora) or self.tuning is not None

    @property
    def trained_layers(self) -> int:
        """Layers that train, counted from the last."""
        layers: int = self.config.num_hidden_layers
        return layers if self.tuning is None or self.tuning.num_layers == -1 else self.tuning.num_layers

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.seq_len * self.batch_size


@dataclass(frozen=True)
class Counted:
    """Amounts of one step, which add.

    Attributes:
        work: of the engine and of the host's copies. forward, backward: the parts of the layers' programs in it.
        loss: the part of the loss's forward programs. tiles, chunks: of the vocabulary and of the tokens, which the
            loss is cut into; no tiles where the head does not train.
        parameters, trained: of the model, and those with a gradient.
        buffers: bytes leased for programs.
        touched: bytes that the host's operations outside the programs read and write; vocabulary, optimizer left out.
        programs: loaded. convolutions: 1 if a program multiplies by a constant kernel, else 0.
        held: parameters whose gradients stay in fp16 where the engine wrote them, for an optimizer that reads them
            there and writes the fp16 weight as well. terms: of the head's, if that is among them: one for each chunk.
    """

    work: Work
    forward: Work
    backward: Work
    parameters: float
    trained: float
    buffers: float
    touched: float
    programs: float
    convolutions: float
    held: float = 0.0
    terms: float = 0.0
    loss: Work = field(default_factory=Work)
    tiles: float = 0.0
    chunks: float = 0.0

    def __add__(self, other: Counted) -> Counted:
        """Return the amounts of both."""
        return Counted(*(a + b for a, b in zip(self._amounts(), other._amounts(), strict=True)))

    def __mul__(self, times: float) -> Counted:
        """Return the amounts of so many."""
        return Counted(*(a * times for a in self._amounts()))

    def _amounts(self) -> list[Any]:
        return list(vars(self).values())


Amount = TypeVar("Amount", Counted, Work)


def mean_call(measured: Amount, lean: Amount) -> Amount:
    """The mean of the calls of an interval, of which one measures."""
    return lean * (1.0 - 1.0 / INTERVAL) + measured * (1.0 / INTERVAL)
