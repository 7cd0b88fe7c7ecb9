"""The projected cost of a training step on a chip: time by where it is spent, rates, power, memory, bounds.

The engine's rates are those of the chip. Those of the host's copies are not: they are another project's host code, and
anew's is priced as what its authors measured of conversions as anew makes them, scaled between chips by how fast their
CPUs copy.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from anew.chips import load_chip
from anew.estimate.capture import count_step
from anew.estimate.counted import Counted, Setting
from anew.estimate.host import ADAMW, CONVERSION_BYTES, NORM, host_bandwidth, host_bytes, tables, times
from anew.estimate.overlap import Beside, Stage
from anew.frontend.scales import INTERVAL
from anew.projection import Rates, Scaled, Work, from_memory, read_rates
from anew.projection.machine import Machine, read_machine
from anew.projection.rates import COPIES, STREAMING
from anew.projection.work import FP16_BYTES

#: How often a step's products need each weight: forward, and backward.
FETCHES = 2
#: Seconds that a program takes to compile, least and most published. M1: 7.1 to 8.5 s for 60 kernels; M4: 345 ms for 9
#: without weights (maderix/ANE commit cb474e1) to 7.6 s for 60; M5: 0.042 s, the median of ane_cost_model.json, to 3.7
#: for 60. M2 and M3: nothing was published; as the M1.
COMPILE = {"m1": (0.118, 0.142), "m2": (0.118, 0.142), "m3": (0.118, 0.142), "m4": (0.038, 0.127), "m5": (0.042, 0.062)}
#: Bytes of a trained and of a frozen parameter on the host: fp32 weight; gradient and two moments besides.
TRAINED, FROZEN = 16, 4
FORMULA = "2 x the multiply-accumulates of the step's matmuls and convolutions, what is computed twice counted twice"
#: Of chips whose limits nobody published, the one whose limits hold.
LIMITS_OF = {"m6": "m5"}
#: What the rates were not measured on.
RUN_TIME_WEIGHTS = "matmuls whose weights arrive at run time (priced as those with constant weights)"
KERNELS = "1x1 convolutions at the shapes of language models (priced as matmuls)"
FUSED = "passes over elements inside programs of hundreds of operations (measured in programs of up to 75)"
BESIDE = "the host's work beside the engine (no row measures both at once; their bytes share the stated bandwidth)"


@dataclass(frozen=True)
class Estimate:
    """A projected step. Times are seconds, rates per second, sizes bytes.

    Attributes:
        chip, setting: what was asked. counted: the amounts.
        seconds: of a step; low, high: between which four of five measurements of programs are expected, host work taken
            as it is.
        split: ``engine``, ``copies``, ``host`` and ``wait`` (the floor of each dispatch), one after the other; parts:
            finer. beside: the optimizer and the forward that follows it, of which a part overlaps. looks: the layers'
            backward pass and what the host finds out about the gradients that it leaves, likewise.
        bound: ``products`` (at their rate), ``run-time weights`` (each fetched once forward and once backward),
            ``optimizer`` (its traffic) and ``dispatch``, one after the other: what this plan cannot do without.
        bound_beside: the same with the optimizer beside the next forward.
        compile: seconds of compiling the programs once, between which others' lie.
        extrapolated: what no measurement stands behind. scaled: how the rates follow from another chip's, if they do.
    """

    chip: str
    setting: Setting
    counted: Counted
    seconds: float
    low: float
    high: float
    split: dict[str, float]
    parts: dict[str, float]
    beside: Beside
    looks: Beside
    bound: dict[str, float]
    bound_beside: float
    compile: tuple[float, float]
    machine: Machine
    extrapolated: tuple[str, ...]
    scaled: Scaled | None

    @property
    def overlap(self) -> float:
        """Seconds in which both the host and the engine work."""
        return self.beside.saved + self.looks.saved

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
            "streaming_ms": 1e3 * sum(self.parts[name] for name in STREAMING),
            "overlap_ms": 1e3 * self.overlap,
            "bound_ms": {name: 1e3 * s for name, s in self.bound.items()},
            "over_bound_without_weights": self.seconds / (sum(self.bound.values()) - self.bound["run-time weights"]),
            "over_bound": self.seconds / sum(self.bound.values()),
            "bound_beside_ms": 1e3 * self.bound_beside,
            "over_bound_beside": self.seconds / self.bound_beside,
            "compile_s": list(self.compile),
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
            "scaled": dataclasses.asdict(self.scaled) if self.scaled else None,
            "machine": machine,
        }


def engine_of(chip: str) -> str:
    """The engine's generation, whose limits hold: that of ``m1-max`` is ``m1``; the newest known one for the M6."""
    return load_chip(LIMITS_OF.get(chip, chip.partition("-")[0])).name


def estimate(setting: Setting, chip: str) -> Estimate:
    """Project a training step.

    Raises UserError for a chip without rates, and for what :func:`anew.estimate.capture.count_step` refuses.
    """
    rates, machine = read_rates(chip), read_machine(chip)
    return project(setting, count_step(setting, engine_of(chip)), chip, rates, machine)


def project(setting: Setting, counted: Counted, chip: str, rates: Rates, machine: Machine) -> Estimate:
    """Put a price on the amounts of a step."""
    parts = times(counted.work, rates, machine)
    traffic = host_bytes(setting, counted)
    host = {f"host: {name}": size / host_bandwidth(machine) for name, size in traffic.items()}
    split = {
        "engine": sum(s for name, s in parts.items() if name not in (*COPIES, "dispatches")),
        "copies": sum(parts[name] for name in COPIES),
        "host": sum(host.values()),
        "wait": parts["dispatches"],
    }
    beside, looks = _beside(setting, counted, rates, machine), _looks(setting, counted, rates, machine)
    bound, bound_beside = _bounds(setting, counted, rates, machine)
    seconds = sum(split.values()) - beside.saved - looks.saved
    spread = [(factor - 1) * (split["engine"] + split["wait"]) for factor in rates.error]
    least, most = COMPILE[engine_of(chip)]
    return Estimate(
        chip=chip,
        setting=setting,
        counted=counted,
        seconds=seconds,
        low=seconds + spread[0],
        high=seconds + spread[1],
        split=split,
        parts=parts | host,
        beside=beside,
        looks=looks,
        bound=bound,
        bound_beside=bound_beside,
        compile=(least * counted.programs, most * counted.programs),
        machine=machine,
        extrapolated=_extrapolated(counted, rates, overlaps=beside.saved + looks.saved > 0),
        scaled=rates.scaled,
    )


def _extrapolated(counted: Counted, rates: Rates, *, overlaps: bool) -> tuple[str, ...]:
    guessed = (
        f"{name} on {rates.chip} (as on the chip with the same engine)" for name in rates.extrapolated(counted.work)
    )
    kernels = (KERNELS,) if counted.convolutions else ()
    return RUN_TIME_WEIGHTS, *kernels, FUSED, *((BESIDE,) if overlaps else ()), *guessed


def _beside(setting: Setting, counted: Counted, rates: Rates, machine: Machine) -> Beside:
    """The optimizer and the forward pass that follows it: layer by layer where gradients are held, then the loss.

    The head's table comes last. Of an embedding that shares it the rows that are looked up are computed ahead; one
    with a table of its own is not among them: a step begins with it and cannot wait.
    """
    config, memory = setting.config, machine.memory_gb_s * 1e9
    layers = counted.trained - (0 if setting.tunes else tables(config))
    table = float(config.vocab_size * config.hidden_size) if counted.tiles else 0.0

    def host(parameters: float) -> float:
        return ADAMW * parameters / host_bandwidth(machine)

    forward, loss = (sum(times(work, rates, machine).values()) for work in (counted.forward, counted.loss))
    stages = [Stage(setting.trained_layers if counted.held else 1, host(layers), forward)]
    if counted.tiles:
        first = loss / counted.chunks
        stages += [Stage(int(counted.tiles), host(table), first), Stage(1, 0.0, loss - first)]
    read = counted.forward + (counted.loss if counted.tiles else Work())
    return Beside(tuple(stages), ADAMW * (layers + table) + _moved(read), memory)


def _looks(setting: Setting, counted: Counted, rates: Rates, machine: Machine) -> Beside:
    """The layers' backward pass, and the pass over a layer's held gradients beside that of the layer below.

    In calls that measure nobody goes on before it.
    """
    table = setting.config.vocab_size * setting.config.hidden_size if counted.terms else 0
    size = NORM * (counted.held - table) * (1.0 - 1.0 / INTERVAL)
    backward = sum(times(counted.backward, rates, machine).values())
    stage = Stage(setting.trained_layers, backward, size / host_bandwidth(machine))
    return Beside((stage,), size + _moved(counted.backward), machine.memory_gb_s * 1e9)


def _moved(work: Work) -> float:
    """Bytes that engine and copies read and write in memory."""
    return work.weight_bytes + CONVERSION_BYTES * (work.read + work.write)


def _bounds(setting: Setting, counted: Counted, rates: Rates, machine: Machine) -> tuple[dict[str, float], float]:
    """The bound by what it is made of, all of it one after the other, and with the optimizer beside the forward."""
    work, memory = counted.work, machine.memory_gb_s * 1e9
    fetched = FETCHES * FP16_BYTES * counted.parameters
    bound = {
        "products": rates.time(Work(matmul=work.matmul, spilled=work.spilled, convolution=work.convolution)),
        "run-time weights": rates.time(from_memory(fetched)),
        "optimizer": ADAMW * counted.trained / memory,
        "dispatch": rates.time(Work(dispatches=work.dispatches)),
    }
    forward = bound["products"] / 3 + bound["run-time weights"] / FETCHES  # of a step's products a third is forward
    size = ADAMW * counted.trained + fetched / FETCHES
    beside = Beside((Stage(setting.config.num_hidden_layers, bound["optimizer"], forward),), size, memory)
    return bound, sum(bound.values()) - beside.saved
