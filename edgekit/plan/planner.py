"""One model on one machine: does it fit, how fast is it, what does a token cost.

Everything about Orin is a projection from published rates of other models; nothing here ran on one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.models.config import ModelConfig, count_parameters, lm_head
from edgekit.plan.cost import CostAssumptions, assume
from edgekit.plan.hardware import Machine, source_texts
from edgekit.plan.memory import Fit, engine_build_peak_bytes, misfit, predict_fit
from edgekit.plan.roofline import DEFAULT_ENGINE, Engine, find_engine
from edgekit.plan.workload import Workload, workload
from edgekit.quant.scheme import QuantScheme
from edgekit.recipe import EmbeddingType
from edgekit.units import format_bytes

SHORT_CONTEXT = 256
CONTEXTS = (SHORT_CONTEXT, 2048)
BATCHES = (1, 2, 4, 8)
EDGE_LLM_SCHEME = QuantScheme(4, 128)
"""The one scheme of linears that TensorRT Edge-LLM reads (docs/edgellm.md)."""
PROJECTION = (
    "Rates are projections by a model fitted on published rates of other models "
    "(docs/planning.md); nothing was run on this machine."
)


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that is planned, quantized as it would be built.

    Attributes:
        name: What to call it.
        recipe: The recipe's name.
        schemes: Of every linear; None is dense float16.
        max_context, max_sequences: Sizes the bundle is built for.
        notes: What a reader must know of it.
    """

    name: str
    config: ModelConfig
    recipe: str
    schemes: Mapping[str, QuantScheme | None]
    embedding: EmbeddingType
    max_context: int
    max_sequences: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What of a plan can be chosen; None and empty are the defaults.

    Attributes:
        engine: Whose published rates the projection rests on.
        batches, contexts: Of the table of rates.
        scenario, price_usd, lifetime_years, utilization, power_w, energy_overhead,
            energy_usd_per_kwh: See :class:`~edgekit.plan.cost.CostAssumptions`.
    """

    engine: str
    batches: Sequence[int] = ()
    contexts: Sequence[int] = ()
    scenario: str | None = None
    price_usd: float | None = None
    lifetime_years: float | None = None
    utilization: float | None = None
    power_w: float | None = None
    energy_overhead: float | None = None
    energy_usd_per_kwh: float | None = None


@dataclass(frozen=True, slots=True)
class Rate:
    """A row of the table of rates, for ``batch`` sequences with ``context`` tokens each.

    Attributes:
        prefill_tokens_per_s: Of one prompt of ``context`` tokens; None where none is published.
        decode_tokens_per_s: Of all sequences together.
        joules_per_token: At most: the mode's power budget over the rate.
        bound: What most of a step's time goes to.
    """

    batch: int
    context: int
    decode_tokens_per_s: float
    decode_step_s: float
    prefill_tokens_per_s: float | None
    time_to_first_token_s: float | None
    joules_per_token: float
    usd_per_million_tokens: float
    bound: str

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, four significant digits."""
        return {
            "batch": self.batch,
            "context_tokens": self.context,
            "decode_tokens_per_s": _short(self.decode_tokens_per_s),
            "decode_step_s": _short(self.decode_step_s),
            "prefill_tokens_per_s": _short(self.prefill_tokens_per_s),
            "time_to_first_token_s": _short(self.time_to_first_token_s),
            "joules_per_token_max": _short(self.joules_per_token),
            "usd_per_million_tokens": _short(self.usd_per_million_tokens),
            "bound": self.bound,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """A finished plan; ``to_dict`` is ``docs/schemas/plan.schema.json``."""

    subject: Subject
    machine: Machine
    engine: Engine
    work: Workload
    fit: Fit
    rates: tuple[Rate, ...]
    cost: CostAssumptions
    warnings: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the model stays within the machine's usable memory."""
        return self.fit.fits

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form of one machine's plan."""
        machine, engine, target = self.machine, self.engine, self.machine.target
        problem = None if self.fits else misfit(self.fit, target)
        cache = self.work.cache_bytes_per_token
        return {
            "target": target.name,
            "title": target.title,
            "power_mode": machine.mode or None,
            "fits": self.fits,
            "reason": problem.message if problem else "",
            "remedy": problem.remedy if problem else "",
            "rates": [rate.to_dict() for rate in self.rates],
            "memory": {
                **self.fit.to_dict(),
                "cache_bytes_per_token": cache,
                "memory_bytes": target.memory_bytes,
                "reserve_bytes": target.memory_bytes - target.usable_bytes,
                "engine_build_peak_bytes": engine_build_peak_bytes(self.subject.config),
            },
            "machine": {
                "bandwidth_bytes_per_s": machine.bandwidth_bytes_per_s,
                "fp16_flops_per_s": machine.fp16_flops_per_s,
                "power_w": machine.power_w,
                "is_reference": machine.is_reference,
                "sources": source_texts(machine.sources),
            },
            "engine": {
                "name": engine.name,
                "fitted_on": engine.calibration,
                "bandwidth_efficiency": engine.bandwidth_efficiency,
                "streamed_bytes_per_s": engine.bandwidth(machine),
                "fixed_s_per_layer": engine.fixed_s(machine, 1),
                "compute_efficiency": engine.compute_efficiency or None,
            },
            "cost": self.cost.to_dict(),
            "warnings": list(self.warnings),
        }


def describe_subject(subject: Subject) -> dict[str, Any]:
    """Return the JSON form of what is planned."""
    config = subject.config
    return {
        "name": subject.name,
        "model_type": config.model_type,
        "parameters": count_parameters(config),
        "recipe": subject.recipe,
        "max_context": subject.max_context,
        "max_sequences": subject.max_sequences,
    }


def make_plan(subject: Subject, machine: Machine, options: PlanOptions) -> Plan:
    """Plan a model on a machine.

    Raises:
        EdgekitError: An option names nothing, or asks the engine for what was never published.
    """
    engine, own = find_engine(options.engine, machine.calibration)
    fit = predict_fit(
        subject.config,
        subject.schemes,
        subject.embedding,
        machine.target,
        max_context=subject.max_context,
        max_sequences=subject.max_sequences,
    )
    work = workload(subject.config, fit.linear_bytes)
    cost = assume(
        machine,
        options.scenario,
        price_usd=options.price_usd,
        lifetime_years=options.lifetime_years,
        utilization=options.utilization,
        power_w=options.power_w,
        energy_overhead=options.energy_overhead,
        energy_usd_per_kwh=options.energy_usd_per_kwh,
    )
    rates = tuple(
        _rate(work, machine, engine, cost, batch, context)
        for batch in options.batches or _batches(subject, engine)
        for context in options.contexts or _contexts(subject)
    )
    warnings = _warnings(subject, machine, engine, own=own)
    return Plan(subject, machine, engine, work, fit, rates, cost, warnings)


def _rate(
    work: Workload,
    machine: Machine,
    engine: Engine,
    cost: CostAssumptions,
    batch: int,
    context: int,
) -> Rate:
    step = engine.decode_step_s(work, machine, batch, context)
    prefill = engine.prefill_s(work, machine, context)
    rate = batch / step
    moved = work.decode_bytes(batch, context) / engine.bandwidth(machine)
    fixed = engine.fixed_s(machine, work.layers)
    parts = {"memory": moved, "fixed time": fixed, "batch arithmetic": step - moved - fixed}
    return Rate(
        batch,
        context,
        rate,
        step,
        context / prefill if prefill else None,
        prefill + step if prefill else None,
        cost.power_w / rate,
        cost.usd_per_million_tokens(rate),
        max(parts, key=lambda name: parts[name]),
    )


def _batches(subject: Subject, engine: Engine) -> tuple[int, ...]:
    if not engine.sequence_efficiency:
        return (1,)
    return tuple(batch for batch in BATCHES if batch <= subject.max_sequences) or (1,)


def _contexts(subject: Subject) -> tuple[int, ...]:
    longest = subject.max_context
    return tuple(dict.fromkeys((*(x for x in CONTEXTS if x < longest), longest)))


def _is_read(subject: Subject) -> bool:
    """Whether TensorRT Edge-LLM reads the layers' linears as they are stored."""
    head = lm_head(subject.config).name
    stored = (scheme for name, scheme in subject.schemes.items() if name != head)
    return all(scheme == EDGE_LLM_SCHEME for scheme in stored)


def _warnings(subject: Subject, machine: Machine, engine: Engine, *, own: bool) -> tuple[str, ...]:
    """Return what a reader must know before trusting the figures."""
    found = [PROJECTION]
    if machine.is_reference:
        found.append(
            f"{machine.title} is a machine of comparison: no rate of it was fitted, and the "
            f"efficiency of {engine.name} on {engine.calibration} stands in"
        )
    elif not own or machine.calibration != machine.name:
        found.append(
            f"no rate of {engine.name} on {machine.title} is published: its parameters are those "
            f"of {engine.calibration}"
        )
    if engine.borrows_batch:
        found.append(
            f"what each further sequence costs on {machine.title} is as on the AGX Orin 64GB: no "
            "batch is published of it"
        )
    if machine.gpu_mhz < machine.full_gpu_mhz:
        found.append(
            "below full clocks one published rate is all there is: what an SM moves a clock is "
            "taken from it, and a layer's fixed time grows as the clock falls"
        )
    if engine.name == DEFAULT_ENGINE and not machine.is_reference and not _is_read(subject):
        found.append(
            f"{engine.name} itself takes 4 bits in groups of 128 only (--recipe w4a16-g128, "
            f"docs/edgellm.md): its rates stand for TensorRT's with {subject.recipe}, of which "
            "none is published"
        )
    found += subject.notes
    peak = engine_build_peak_bytes(subject.config)
    if not machine.is_reference and peak > machine.target.usable_bytes:
        found.append(
            f"building the engine may take {format_bytes(peak)} on {machine.title}, more than its "
            f"{format_bytes(machine.target.usable_bytes)} usable: add swap, or build on a device "
            "with more memory and the same GPU, JetPack and TensorRT"
        )
    return tuple(found)


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
