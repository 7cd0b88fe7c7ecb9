"""The projected cost of a training step on a chip: time by where it is spent, rates, power, memory, bounds.

Nothing overlaps: the rates were measured with one program at a time, each awaited, and host and engine take turns.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from anew.chips import load_chip
from anew.estimate.capture import Counted, Setting, count_step
from anew.projection import Rates, Work, read_rates
from anew.projection.machine import Machine, read_machine
from anew.projection.rates import COPIES

#: Bytes of a trained parameter that AdamW in fp32 moves: weight, gradient and two moments read, all but the gradient
#: written; and that clipping moves: the gradient read for its norm, then read and written to be scaled.
ADAMW, CLIPPING = 28, 12
#: Bytes of an element of a trained embedding: its dense gradient is zeroed; tied to the head's, it is added to that.
EMBEDDING, TIED = 4, 12
#: Bytes of an element of a trained head: its gradient is zeroed, and each tile's product is read and added to it.
HEAD = 16
#: Bytes of a trained and of a frozen parameter on the host: fp32 weight; gradient and two moments besides.
TRAINED, FROZEN = 16, 4
FORMULA = "2 x the multiply-accumulates of the step's matmuls and convolutions, what is computed twice counted twice"
#: What the rates were not measured on.
RUN_TIME_WEIGHTS = "matmuls whose weights arrive at run time (priced as those with constant weights)"
KERNELS = "1x1 convolutions at the shapes of language models (priced as matmuls)"
FUSED = "arithmetic inside fused programs (priced as activations in programs of their own)"


@dataclass(frozen=True)
class Estimate:
    """A projected step. Times are seconds, rates per second, sizes bytes.

    Attributes:
        chip, setting: what was asked. counted: the amounts.
        seconds: of a step; low, high: between which four of five measurements of programs are expected, host work taken
            as it is.
        split: ``engine``, ``copies``, ``host`` and ``wait`` (the floor of each dispatch). parts: finer.
        bound: ``run-time weights`` (matmuls at their rate), ``optimizer`` (its traffic) and ``dispatch``: what this
            plan cannot do without as long as nothing overlaps. extrapolated: what no measurement stands behind.
    """

    chip: str
    setting: Setting
    counted: Counted
    seconds: float
    low: float
    high: float
    split: dict[str, float]
    parts: dict[str, float]
    bound: dict[str, float]
    machine: Machine
    extrapolated: tuple[str, ...]

    @property
    def tokens_per_second(self) -> float:
        """Tokens learned from a second."""
        return self.setting.tokens / self.seconds

    @property
    def flops(self) -> float:
        """Of a step, by :data:`FORMULA`."""
        return self.counted.work.matmul + self.counted.work.convolution

    @property
    def tflops(self) -> float:
        """Reached over the whole step."""
        return self.flops / self.seconds / 1e12

    @property
    def utilisation(self) -> dict[str, float]:
        """Of the measured fp16 peak, of the rated TOPS (int8's from M4 on), and of the 15.8 that others divide by."""
        machine = self.machine
        rated = {f"{machine.rated_tops:g} TOPS as rated": machine.rated_tops, "15.8 (M2's TOPS)": 15.8}
        return {
            name: self.tflops / peak
            for name, peak in {
                f"measured fp16 peak, {machine.peak_tflops:g} TFLOPS": machine.peak_tflops,
                **rated,
            }.items()
        }

    @property
    def joules(self) -> dict[str, float]:
        """Energy of a step by rail: the engine's while it computes, the rest of the package while the host works."""
        busy = self.split["copies"] + self.split["host"]
        return {
            "engine": self.split["engine"] * self.machine.engine_watts,
            "rest of package": busy * self.machine.host_watts,
        }

    @property
    def tokens_per_joule(self) -> float:
        """Tokens learned from a joule of both rails."""
        return self.setting.tokens / sum(self.joules.values())

    @property
    def tflops_per_watt(self) -> float:
        """Over the whole step and both rails."""
        return self.flops / 1e12 / sum(self.joules.values())

    @property
    def memory(self) -> dict[str, float]:
        """Bytes by what they are for; activations that PyTorch itself keeps outside the layers are not among them."""
        trained = self.counted.trained
        return {
            "weights, gradients, moments": TRAINED * trained + FROZEN * (self.counted.parameters - trained),
            "buffers of programs": self.counted.buffers,
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data; all of it projected."""
        derived = ("tokens_per_second", "flops", "tflops", "utilisation", "joules", "tokens_per_joule")
        machine = dataclasses.asdict(self.machine)
        return {
            "projected": True,
            "chip": self.chip,
            "seq_len": self.setting.seq_len,
            "batch_size": self.setting.batch_size,
            "lora": self.setting.lora,
            "base_bits": self.setting.base_bits,
            "ms": 1e3 * self.seconds,
            "ms_low": 1e3 * self.low,
            "ms_high": 1e3 * self.high,
            "split_ms": {name: 1e3 * s for name, s in self.split.items()},
            "parts_ms": {name: 1e3 * s for name, s in self.parts.items()},
            "bound_ms": {name: 1e3 * s for name, s in self.bound.items()},
            "over_bound": self.seconds / sum(self.bound.values()),
            "formula": FORMULA,
            **{name: getattr(self, name) for name in derived},
            "tflops_per_watt": self.tflops_per_watt,
            "watts": sum(self.joules.values()) / self.seconds,
            "memory": self.memory,
            "parameters": int(self.counted.parameters),
            "trained_parameters": int(self.counted.trained),
            "programs": int(self.counted.programs),
            "dispatches": int(self.counted.work.dispatches),
            "extrapolated": list(self.extrapolated),
            "machine": machine,
        }


def engine_of(chip: str) -> str:
    """The engine's generation, whose limits hold: that of ``m1-max`` is ``m1``."""
    return load_chip(chip.partition("-")[0]).name


def estimate(setting: Setting, chip: str) -> Estimate:
    """Project a training step.

    Raises UserError for a chip without rates, and for what :func:`anew.estimate.capture.count_step` refuses.
    """
    rates, machine = read_rates(chip), read_machine(chip)
    return project(setting, count_step(setting, engine_of(chip)), chip, rates, machine)


def project(setting: Setting, counted: Counted, chip: str, rates: Rates, machine: Machine) -> Estimate:
    """Put a price on the amounts of a step."""
    parts = rates.parts(counted.work)
    host = {f"host: {name}": b / machine.memory_gb_s / 1e9 for name, b in host_bytes(setting, counted).items()}
    engine = [name for name in parts if name not in (*COPIES, "dispatches")]
    low, high = rates.interval(counted.work)
    split = {
        "engine": sum(parts[name] for name in engine),
        "copies": sum(parts[name] for name in COPIES),
        "host": sum(host.values()),
        "wait": parts["dispatches"],
    }
    bound = {
        "run-time weights": rates.time(Work(matmul=counted.work.matmul, spilled=counted.work.spilled)),
        "optimizer": host["host: optimizer"],
        "dispatch": parts["dispatches"],
    }
    extrapolated = (RUN_TIME_WEIGHTS, *([KERNELS] if counted.convolutions else []), FUSED)
    unmeasured = tuple(f"{name} on {chip} (a guess)" for name in rates.extrapolated(counted.work))
    times = (sum(split.values()), low + split["host"], high + split["host"])
    return Estimate(chip, setting, counted, *times, split, parts | host, bound, machine, extrapolated + unmeasured)


def host_bytes(setting: Setting, counted: Counted) -> dict[str, float]:
    """Bytes that the host reads and writes in a step between the programs, by what for."""
    config = setting.config
    table = float(config.vocab_size * config.hidden_size)
    tied = bool(config.tie_word_embeddings)
    tables = 0.0 if setting.tunes else table * (EMBEDDING + HEAD + (TIED if tied else 0))
    return {
        "optimizer": ADAMW * counted.trained,
        "clipping": CLIPPING * counted.trained,
        "embedding and head": tables,
        "other": counted.touched,
    }
