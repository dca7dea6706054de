"""The whole exception tree, by who must act.

    EdgekitError
    ├── RecipeError              the recipe file is wrong
    ├── CheckpointError          the model folder is damaged or incomplete
    │   └── UnsupportedModelError    a model edgekit does not (or will not) build
    ├── HubError                 a hub id could not be resolved or downloaded
    ├── CalibrationError         the calibration or evaluation data is wrong
    ├── QuantizationError        a tensor cannot be quantized as planned
    ├── GraphError               the exported graph is not what was planned
    ├── BundleError              a bundle is damaged or not understood
    │   └── DigestMismatchError      the bytes are not those the manifest names
    ├── EngineError              an inference engine refuses or fails
    │   ├── ContextOverflowError     a prompt does not fit the cache
    │   └── EndpointError            a server that is asked over HTTP refuses or fails
    ├── QualityError             a built bundle misses its recipe's acceptance limits
    ├── StorageError             disk full, no permission, not a folder
    ├── ConfigError              the agent's configuration is wrong
    ├── TelemetryError           the device's telemetry
    │   ├── MessageError             a message that crosses the air breaks its contract
    │   ├── SensorError              a reading cannot be understood
    │   └── RingError                the store of unsent telemetry fails
    ├── FleetError               the cloud's side
    │   └── StoreError               the database refuses, is of another version, or is not there
    │       └── StoreAwayError           it is not there just now: what was asked may be asked again
    ├── MissingExtraError        an optional dependency is not installed
    └── MissingInterpreterError  a tool that needs another Python is not set up

Every message is one line: what is wrong and where, then the remedy. ``EXIT_CODES`` maps the
families to the exit codes documented in ``docs/cli.md``; 0 is success, 1 an internal error,
2 a usage error (click's own), 130 an interruption.
"""

from __future__ import annotations

FETCH_AGAIN = "Fetch or build the bundle again"


def first_line(error: BaseException) -> str:
    """Return the first line of what another program's exception says; its type if it says nothing.

    Args:
        error: An exception whose message may be empty, or pages long.
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _one_line(text: str) -> str:
    """Return a text without line ends and terminal codes, which a file's names can hold."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


class EdgekitError(Exception):
    """Something the user can act on.

    Args:
        message: What is wrong, and where: one clause, no trailing full stop.
        remedy: What to do about it; empty for the family's usual one, if it has one, or when the
            message says it already.
    """

    exit_code = 1
    usual_remedy = ""

    def __init__(self, message: str, remedy: str = "") -> None:
        self.message = _one_line(message)
        self.remedy = _one_line(remedy or self.usual_remedy)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}. {self.remedy}" if self.remedy else self.message


class RecipeError(EdgekitError):
    """A recipe has an unknown key, a wrong type or an impossible value."""

    exit_code = 3


class CheckpointError(EdgekitError):
    """A checkpoint folder is damaged, incomplete or not a checkpoint."""

    exit_code = 4
    usual_remedy = "Restore the file as its publisher has it"


class UnsupportedModelError(CheckpointError):
    """A model that edgekit does not build; the remedy names what to use instead."""

    exit_code = 5
    usual_remedy = ""


class HubError(EdgekitError):
    """A hub id could not be resolved, or its files could not be fetched."""

    exit_code = 6


class CalibrationError(EdgekitError):
    """Calibration or evaluation data has the wrong form."""

    exit_code = 7


class QuantizationError(EdgekitError):
    """A tensor cannot be quantized as the plan says."""

    exit_code = 8


class GraphError(EdgekitError):
    """The exported graph is not the planned one, or an engine's parser refuses it."""

    exit_code = 9
    usual_remedy = "Build it again with this edgekit; if it fails again, report the model"


class BundleError(EdgekitError):
    """A bundle is damaged, incomplete or of an unknown version."""

    exit_code = 10
    usual_remedy = FETCH_AGAIN


class DigestMismatchError(BundleError):
    """Bytes are not those the manifest names.

    Args:
        path: File whose content is wrong, relative to the bundle.
        wanted: Digest the manifest names, hex.
        got: Digest of what is there.
        named_by: What names the digest.
    """

    def __init__(self, path: str, wanted: str, got: str, named_by: str = "the manifest") -> None:
        super().__init__(f"{path} is damaged: its digest is {got}, {named_by} says {wanted}")
        self.path = path
        self.wanted = wanted
        self.got = got


class EngineError(EdgekitError):
    """An inference engine refuses the graph, the inputs or the machine."""

    exit_code = 11


class ContextOverflowError(EngineError):
    """Prompt and generation do not fit the cache."""


class EndpointError(EngineError):
    """A server that is asked over HTTP is not there, refuses, or answers something else."""


class QualityError(EdgekitError):
    """The built bundle misses the limits its recipe sets."""

    exit_code = 12


class StorageError(EdgekitError):
    """The disk is full, a path is not writable, or is not what it should be."""

    exit_code = 13


class ConfigError(EdgekitError):
    """The agent's configuration has an unknown key, a wrong type or an impossible value."""

    exit_code = 15


class TelemetryError(EdgekitError):
    """What the device's telemetry cannot do; nothing else on the device depends on it."""

    exit_code = 16


class MessageError(TelemetryError):
    """A topic or payload is not as ``docs/telemetry.md`` says."""

    usual_remedy = "Compare the sender's version with docs/telemetry.md"


class SensorError(TelemetryError):
    """A sensor's output is of no known form."""


class RingError(TelemetryError):
    """The ring of unsent telemetry cannot be opened or written."""


class FleetError(EdgekitError):
    """What the cloud's side (``edgekit-fleet``) cannot do."""

    exit_code = 17


class StoreError(FleetError):
    """The store cannot be opened, read or written."""


class StoreAwayError(StoreError):
    """The database does not answer, or is busy: nothing was written, and trying again may help."""

    usual_remedy = "Start the database, or try again later"


class MissingExtraError(EdgekitError):
    """An optional dependency is missing.

    Args:
        feature: What needs it, as a clause ("GPTQ calibration").
        extra: The extra that brings it (``calibrate``).
        otherwise: What to do instead, as a clause ("or leave it out"); empty for nothing.
    """

    exit_code = 14

    def __init__(self, feature: str, extra: str, otherwise: str = "") -> None:
        remedy = f"Install them with: pip install 'edgekit[{extra}]'"
        super().__init__(
            f"{feature} needs packages that are not installed",
            f"{remedy}, {otherwise}" if otherwise else remedy,
        )
        self.feature = feature
        self.extra = extra


class MissingInterpreterError(EdgekitError):
    """The other Python environment that a tool lives in is not named, or lacks the tool."""

    exit_code = 14


INTERRUPTED_EXIT_CODE = 130


class BuildInterrupted(KeyboardInterrupt):
    """An interruption after which the same build takes up what it has finished."""
