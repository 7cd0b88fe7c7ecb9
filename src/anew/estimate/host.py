"""What the host does in a step, in bytes and elements, and what that costs: sources stand beside each price."""

from __future__ import annotations

from typing import Any

from anew.estimate.counted import Counted, Setting
from anew.projection import Rates, Work
from anew.projection.machine import Machine, read_machine
from anew.projection.rates import COPIES

#: Bytes of a trained parameter that AdamW in fp32 moves: weight, gradient and two moments read, all but the gradient
#: written; and that clipping moves: the gradient read for its norm, then read and written to be scaled.
ADAMW, CLIPPING = 28, 12
#: Where gradients stay in fp16 and clipping's factor goes into the optimizer's pass: bytes of a parameter whose
#: gradient is fp16, read for its norm, and of any other. The pass moves as many as AdamW's: two less for the gradient,
#: two more for the weight in fp16.
NORM, NORM_FP32 = 2, 4
#: Bytes of an element of a trained embedding: its dense gradient is zeroed; tied to the head's, it is added to that.
EMBEDDING, TIED = 4, 12
#: Bytes of an element of a trained head: its gradient is zeroed, and each tile's product is read and added to it.
HEAD = 16
#: Of a head's where the engine's optimizer takes an embedding's gradient by rows: each tile's product is copied.
HEAD_COPIED = 8
#: Of one whose gradient stays in fp16, where tokens are in two chunks: the second's term is read for its norm and by
#: the optimizer, and both are read again for the norm of their sum.
SECOND_TERM = 8
#: Bytes of an element of a row whose gradient is in float32 all the same, of each token at most: of labels, read from
#: fp16, written, and added to; of a tied embedding summed, then the same again, and the labels' rows are moved.
LABELS, LOOKED_UP = 18, 42
#: Bytes of an element of a row that a tied embedding looks up before its table is written: weight and moments gathered,
#: gradient read and written, AdamW's pass over these, and the result put in its place.
AHEAD = 24 + 6 + ADAMW + 12
#: Seconds that the host takes on an M4 to convert an element between fp32 and a buffer of the engine: the forward pass
#: of maderix/ANE's static trainer (commit 4d67db1, "io 4.1 ms"), which converts 15 x 768 x 256 elements a layer in 12
#: layers. The dearest of three published readings: parameter-golf's forward pass gives 0.102 ns on an M4 Pro, and the
#: dynamic trainer's copies (commit cb474e1) move 79 to 90 GB/s, of which a conversion needs 6 bytes.
CONVERSION, CONVERTED_ON = 4.1e-3 / (12 * 15 * 768 * 256), "m4"
CONVERSION_BYTES = 6
#: How much of the memory's stated bandwidth a host's passes over long arrays reach: STREAM on an M4's CPU, 100 GB/s of
#: 120 (Huebner et al., arXiv 2502.05317).
REACHED = 100 / 120


def times(work: Work, rates: Rates, machine: Machine) -> dict[str, float]:
    """Seconds of each amount: the engine's at the chip's rates, copies at the price of anew's host code."""
    return rates.parts(work) | {name: getattr(work, name) * conversion(machine) for name in COPIES}


def conversion(machine: Machine) -> float:
    """Seconds of converting an element between fp32 and a buffer of the engine; never faster than the memory."""
    scaled = CONVERSION * machine.copy_ms / read_machine(CONVERTED_ON).copy_ms
    return max(scaled, CONVERSION_BYTES / host_bandwidth(machine))


def host_bandwidth(machine: Machine) -> float:
    """Bytes a second that passes of the host over long arrays reach."""
    return REACHED * machine.memory_gb_s * 1e9


def tables(config: Any) -> float:
    """Parameters of embedding and head."""
    return float(config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2))


def host_bytes(setting: Setting, counted: Counted) -> dict[str, float]:
    """Bytes that the host reads and writes in a step between the programs, by what for."""
    config = setting.config
    table = 0.0 if setting.tunes else float(config.vocab_size * config.hidden_size)
    return {
        "optimizer": ADAMW * counted.trained,
        "clipping": clipping(counted),
        "embedding and head": table * at_ends(config, counted) + rows(setting, counted),
        "other": counted.touched,
    }


def at_ends(config: Any, counted: Counted) -> float:
    """Bytes of an element of a table for the gradients of embedding and head."""
    if not counted.held:
        return dense_at_ends(config)
    apart = 0 if config.tie_word_embeddings else EMBEDDING
    return apart + (SECOND_TERM * (counted.terms - 1) if counted.terms else HEAD_COPIED)


def rows(setting: Setting, counted: Counted) -> float:
    """Bytes for the rows of a head's gradient that are in float32, and that are looked up, were each token another."""
    config = setting.config
    of_gradient = LABELS + (LOOKED_UP if config.tie_word_embeddings else 0) if counted.terms else 0
    ahead = AHEAD if config.tie_word_embeddings and counted.tiles else 0
    return float((of_gradient + ahead) * setting.tokens * config.hidden_size)


def dense_at_ends(config: Any) -> float:
    """The same where the embedding's gradient is a dense table."""
    return EMBEDDING + HEAD + (TIED if config.tie_word_embeddings else 0)


def clipping(counted: Counted) -> float:
    """Bytes that clipping by the norm of all gradients moves besides the optimizer's pass."""
    if not counted.held:
        return CLIPPING * counted.trained
    return NORM * counted.held + NORM_FP32 * (counted.trained - counted.held)
