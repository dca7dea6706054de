"""One line of ``tegrastats``, in the forms of L4T R35, R36 and R39 for Orin.

The line differs by release, by root and by what is switched on: SWAP and EMC may be absent, names
change case, the GPU is ``7%``, ``7%@306``, ``7%@[306,306]`` or ``@[306,306]``, rails have two
values or three, temperatures one or two. Traps, and what is made of them:

- ``GPU@-256C`` is a sensor that is switched off: None.
- ``VDD_CPU_CV -398mW`` is real: the difference of two measured rails near zero.
- ``NC`` rails are not connected; a name that comes twice is ambiguous: None.
- A CPU that is ``off`` has neither load nor clock.
- A line may be cut anywhere when the pipe's buffer ends or the program is killed. No number is read
  from what a cut could have shortened: a bare number must be followed by something.

Forms from lines of real boards, which ``tests/data/tegrastats`` holds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from edgekit.contracts.series import Number
from edgekit.errors import SensorError

_MIB, _KIB = 1024**2, 1024
_DATE = re.compile(r"\d\d-\d\d-\d{4} \d\d:\d\d:\d\d ")
_RAM = re.compile(r"RAM (\d{1,9})/(\d{1,9})MB(?: \(lfb \d{1,9}x(\d{1,9})([kM])B\))?(?= |$)")
_SWAP = re.compile(r" SWAP (\d{1,9})/(\d{1,9})MB(?= |$)")
_CPU = re.compile(r" CPU \[([^\]]*)\](?= |$)")
_CORE = re.compile(r"(\d{1,3})%@(\d{1,5})|(off)")
_LOAD = re.compile(r"(?:(\d{1,3})%)?(?:@(?:(\d{1,5})|\[(\d{1,5}(?:,\d{1,5})*)\]))?")
_TEMPERATURE = re.compile(
    r"([A-Za-z][A-Za-z0-9_-]{0,63})@(-?\d{1,4}(?:\.\d{1,4})?)C(?:/-?[\d.]{1,9}C)?"
)
_RAIL = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_POWER = re.compile(r"(-?\d{1,7})mW(?:/-?\d{1,7}mW){1,2}")
_OFF_CELSIUS = -256
_UNCONNECTED = "NC"


@dataclass(frozen=True, slots=True)
class Load:
    """A unit's load and clock; None where the line has none."""

    percent: int | None = None
    mhz: int | None = None


@dataclass(frozen=True, slots=True)
class TegrastatsLine:
    """What a line says; None where it does not.

    Attributes:
        ram_used_bytes: Without buffers and caches.
        ram_total_bytes: What CPU and GPU share.
        largest_free_block_bytes: Size of the largest contiguous blocks.
        swap_used_bytes: Of the swap space.
        swap_total_bytes: The swap space.
        cpus: One a core, in order; None if the list is not whole.
        memory: EMC, the memory's controller.
        gpu: GR3D; of several clocks the highest.
        celsius: Zone, in lower case, to temperature.
        milliwatts: Rail to power at the moment of the line.
    """

    ram_used_bytes: int
    ram_total_bytes: int
    largest_free_block_bytes: int | None = None
    swap_used_bytes: int | None = None
    swap_total_bytes: int | None = None
    cpus: tuple[Load, ...] | None = None
    memory: Load = Load()
    gpu: Load = Load()
    celsius: dict[str, float | None] = field(default_factory=dict)
    milliwatts: dict[str, int | None] = field(default_factory=dict)

    def values(self) -> dict[str, Number | None]:
        """Return its readings."""
        found: dict[str, Number | None] = {
            "memory_total_bytes": self.ram_total_bytes,
            "memory_largest_free_block_bytes": self.largest_free_block_bytes,
            "swap_used_bytes": self.swap_used_bytes,
            "swap_total_bytes": self.swap_total_bytes,
            "cpu_load_percent": self.cpu_percent,
            "gpu_load_percent": self.gpu.percent,
            "gpu_mhz": self.gpu.mhz,
            "emc_load_percent": self.memory.percent,
            "emc_mhz": self.memory.mhz,
        }
        found.update({f"temperature_celsius.{zone}": c for zone, c in self.celsius.items()})
        found.update({f"power_mw.{rail}": mw for rail, mw in self.milliwatts.items()})
        return found

    @property
    def cpu_percent(self) -> float | None:
        """Mean load of the cores that are on."""
        loads = [core.percent for core in self.cpus or () if core.percent is not None]
        return round(sum(loads) / len(loads), 1) if loads else None


def parse_line(line: str) -> TegrastatsLine:
    """Read a line, whole or cut.

    Raises:
        SensorError: It does not begin as a line does, or is two that run into one another.
    """
    text = line.rstrip("\r\n")
    date = _DATE.match(text)
    text = text[date.end() :] if date else text
    ram = _RAM.match(text)
    if ram is None or _DATE.search(text) or text.count("RAM ") > 1:
        raise SensorError(f"tegrastats wrote a line of no known form: {line[:80]!a}")
    swap = _SWAP.search(text)
    cpus = _CPU.search(text)
    rest = text[max(found.end() for found in (ram, swap, cpus) if found) :]
    memory, gpu, celsius, milliwatts = _units(rest.split())
    return TegrastatsLine(
        ram_used_bytes=int(ram[1]) * _MIB,
        ram_total_bytes=int(ram[2]) * _MIB,
        largest_free_block_bytes=int(ram[3]) * (_MIB if ram[4] == "M" else _KIB)
        if ram[3]
        else None,
        swap_used_bytes=int(swap[1]) * _MIB if swap else None,
        swap_total_bytes=int(swap[2]) * _MIB if swap else None,
        cpus=_cores(cpus[1]) if cpus else None,
        memory=memory,
        gpu=gpu,
        celsius=celsius,
        milliwatts=milliwatts,
    )


def _cores(text: str) -> tuple[Load, ...] | None:
    matches = [_CORE.fullmatch(core) for core in text.split(",")]
    if not all(matches):
        return None
    return tuple(
        Load() if core[3] else Load(_percent(core[1]), int(core[2])) for core in matches if core
    )


def _units(
    words: list[str],
) -> tuple[Load, Load, dict[str, float | None], dict[str, int | None]]:
    """Return EMC, GPU, temperatures and powers of what stands behind the CPUs."""
    loads = {"EMC_FREQ": Load(), "GR3D_FREQ": Load()}
    celsius: dict[str, float | None] = {}
    milliwatts: dict[str, int | None] = {}
    for index, (name, word) in enumerate(zip(words, [*words, ""][1:], strict=True)):
        degrees = _TEMPERATURE.fullmatch(name)
        power = _POWER.fullmatch(word)
        if degrees:
            zone, value = degrees[1].lower(), float(degrees[2])
            celsius[zone] = None if value <= _OFF_CELSIUS or zone in celsius else value
        elif name in loads and word:
            loads[name] = _load(word, last=index + 2 >= len(words))
        elif power and _RAIL.fullmatch(name) and name != _UNCONNECTED:
            milliwatts[name] = None if name in milliwatts else int(power[1])
    return loads["EMC_FREQ"], loads["GR3D_FREQ"], celsius, milliwatts


def _load(word: str, *, last: bool) -> Load:
    """Return a unit's load; a clock at the line's end may be cut short."""
    match = _LOAD.fullmatch(word)
    if match is None:
        return Load()
    percent = _percent(match[1]) if match[1] else None
    if match[3]:
        return Load(percent, max(map(int, match[3].split(","))))
    return Load(percent, int(match[2]) if match[2] and not last else None)


def _percent(digits: str) -> int | None:
    value = int(digits)
    return value if value <= 100 else None
