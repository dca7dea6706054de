"""Takes up documents from afar: proves, tries, remembers, and only then lets them hold.

Every step that can fail comes before anything changes, and the file is written before the device
behaves by it: after a power cut it is the old configuration or the new one. A document that is
refused is counted and told, and disturbs nothing. No network is touched here.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

from device.remote.effective import CLOSED, Effective, Local, merge
from device.remote.errors import OUTCOMES, Outcome, RefusedError
from device.remote.gate import Gate, check_fresh, digest_of
from device.remote.state import MAX_SEEN, State, StateFile
from device.remote.trusted_time import TrustedTime
from device.telemetry.clock import Clock
from edgekit.contracts.canonical import parse_document
from edgekit.contracts.envelope import Envelope
from edgekit.contracts.fields import check_fields
from edgekit.contracts.series import Values
from edgekit.contracts.signed import Command, Configuration
from edgekit.errors import BundleError, EdgekitError, MessageError

_LOG = logging.getLogger(__name__)
MAX_ANSWER_BYTES: Final = 1 << 20
MAX_DOCUMENTS: Final = 64
"""In one answer; each may cost some verifications."""


class Remote:
    """What was said from afar, and what holds because of it.

    Args:
        gate: Proves documents.
        file: Remembers them.
        local: The owner's word.
        clock: The device's.
        apply: Lets a configuration hold; called at once with the one that was remembered, and in
            the caller's thread. What it raises takes the document back.

    Attributes:
        effective: What holds.

    Raises:
        StorageError: The file cannot be opened.
        TelemetryError: A rule of the owner's cannot work.
    """

    def __init__(
        self,
        gate: Gate,
        file: StateFile,
        local: Local,
        clock: Clock,
        apply: Callable[[Effective], None],
    ) -> None:
        self._gate, self._file, self._local, self._apply = gate, file, local, apply
        self._state = file.load()
        self._time = TrustedTime(clock, self._state.time_floor_ms)
        self._counts: Counter[Outcome] = Counter()
        self._error = ""
        self._proven, self._unproven = self._prove_held()
        self.effective = self._merged(self._proven)
        apply(self.effective)

    def take(self, answer: bytes) -> list[Command]:
        """Take up what an answer of the service brings.

        Returns:
            Commands to be done, the oldest first. Each is remembered already, so that it is done
            once at most, whatever happens then.
        """
        try:
            rows = _rows(answer)
        except RefusedError as error:
            self.refuse(error)
            return []
        taken = [self._take_or_refuse(envelope) for envelope in rows]
        commands = [document for document in taken if isinstance(document, Command)]
        return sorted(commands, key=lambda command: command.counter)

    def refuse(self, error: RefusedError) -> None:
        """Count and tell that something was not taken up."""
        self._counts[error.reason] += 1
        said = f"{error.reason}: {error.message}"
        if said != self._error:
            _LOG.warning("a document from afar is refused, %s", said)
        self._error = said

    @property
    def refused(self) -> int:
        """How often something was not taken up."""
        taken = self._counts["applied"] + self._counts["unchanged"]
        return sum(self._counts.values()) - taken

    def readings(self) -> Values:
        """Return what became of documents, as counters for a sample."""
        return {f"remote_documents_total.{name}": self._counts[name] for name in OUTCOMES}

    def details(self) -> dict[str, str | int]:
        """Return what a birth tells: what holds, and the last refusal."""
        held = self._state.held
        tokens = [f"{name} {digest_of(held[name])[:12]}" for name in sorted(held)]
        said = {
            "remote_held": ", ".join(tokens),
            "remote_unproven": ", ".join(sorted(self._unproven)),
            "remote_refused": self._error[:200],
        }
        return {name: text for name, text in said.items() if text}

    def describe(self) -> list[dict[str, Any]]:
        """Return what was taken up, for people to read."""
        return [
            {
                "audience": name,
                "digest": digest_of(envelope),
                "proven": name in self._proven,
                **({"counter": self._proven[name].counter} if name in self._proven else {}),
            }
            for name, envelope in sorted(self._state.held.items())
        ]

    def forget(self) -> None:
        """Hold nothing that was said from afar; the owner's own act. Floors stay.

        Raises:
            StorageError: It cannot be remembered.
        """
        self._keep(replace(self._state, held={}, lost=False))
        self._proven, self._unproven = {}, frozenset()
        self.effective = self._merged({})
        self._apply(self.effective)

    def _take_or_refuse(self, envelope: Envelope | RefusedError) -> Configuration | Command | None:
        try:
            return self._take(envelope)
        except RefusedError as error:
            self.refuse(error)
            return None

    def _take(self, envelope: Envelope | RefusedError) -> Configuration | Command | None:
        """Take up one document; None if it is known, or holds now."""
        if isinstance(envelope, RefusedError):
            raise envelope
        digest = digest_of(envelope)
        name = self._name_of(digest)
        if name is not None and name in self._unproven:
            # The file that holds is signed anew: it is not of yesterday, but the one of today.
            document = self._gate.prove(envelope)
            if isinstance(document, Configuration):
                self._hold(document, envelope)
            self._counts["applied"] += 1
            return None
        if digest in self._state.seen or name is not None:
            self._counts["unchanged"] += 1
            if name is not None:
                self._countersign(name, envelope)
            return None
        document = self._gate.prove(envelope)
        check_fresh(document, self._state.floors, self._time)
        if isinstance(document, Configuration):
            self._hold(document, envelope)
        else:
            self._remember(document, digest)
        self._counts["applied"] += 1
        return document

    def _name_of(self, digest: str) -> str | None:
        """Return under what a configuration is held; None if it is not."""
        held = self._state.held
        return next((name for name in held if digest_of(held[name]) == digest), None)

    def _countersign(self, name: str, envelope: Envelope) -> None:
        """Keep what holds with more signatures: one of its keys may go out of use.

        Fewer, or a stranger's, write nothing, so that nobody wears the flash out by them.
        """
        if self._gate.signers(envelope) > self._gate.signers(self._state.held[name]):
            try:
                self._keep(replace(self._state, held={**self._state.held, name: envelope}))
            except EdgekitError as error:
                raise RefusedError("failed", error.message, error.remedy) from error

    def _hold(self, document: Configuration, envelope: Envelope) -> None:
        """Let a configuration hold, all of it or nothing."""
        name = str(document.audience)
        proven = {**self._proven, name: document}
        before = self._state, self._proven, self._unproven, self.effective
        try:
            effective = self._merged(proven, self._unproven - {name}, lost=self._lost_after(name))
        except EdgekitError as error:
            raise RefusedError("setting", error.message, error.remedy) from error
        held = {**self._state.held, name: envelope}
        try:
            self._advance(document, held=held, lost=self._lost_after(name))
            self._proven, self._unproven = proven, self._unproven - {name}
            self.effective = effective
            self._apply(effective)
        except EdgekitError as error:
            state, self._proven, self._unproven, self.effective = before
            self._restore(state)
            raise RefusedError("failed", error.message, error.remedy) from error
        self._error = ""
        _LOG.info("configuration %d of %s holds", document.counter, name)

    def _remember(self, command: Command, digest: str) -> None:
        """Note that a command is about to be done."""
        try:
            self._advance(command, seen=(*self._state.seen, digest)[-MAX_SEEN:])
        except EdgekitError as error:
            raise RefusedError("failed", error.message, error.remedy) from error

    def _advance(self, document: Configuration | Command, **changes: Any) -> None:
        self._time.raise_to(document.issued_ms)
        floor = max(document.counter, self._state.floors.get(document.scope, 0))
        floors = {**self._state.floors, document.scope: floor}
        self._keep(replace(self._state, floors=floors, **changes))

    def _keep(self, state: State) -> None:
        state = replace(state, time_floor_ms=self._time.floor_ms)
        self._file.save(state)
        self._state = state

    def _restore(self, state: State) -> None:
        """Go back to what held, where the new could not be made to hold."""
        if self._state is state:
            return
        self._state = state
        try:
            self._file.save(state)
            self._apply(self.effective)
        except EdgekitError:
            _LOG.exception("what held before could not be restored in full")

    def _lost_after(self, name: str) -> bool:
        """Whether it is still unknown what was forbidden once a document for someone holds."""
        return self._state.lost and not name.startswith("device:")

    def _merged(
        self,
        proven: Mapping[str, Configuration],
        unproven: frozenset[str] | None = None,
        *,
        lost: bool | None = None,
    ) -> Effective:
        unproven = self._unproven if unproven is None else unproven
        lost = self._state.lost if lost is None else lost
        effective = _merge(self._local, proven)
        if unproven or lost:
            return replace(effective, leaks=effective.leaks.tightened_by(CLOSED))
        return effective

    def _prove_held(self) -> tuple[dict[str, Configuration], frozenset[str]]:
        """Read again what is remembered: keys, identity and this release may have changed.

        Expiry is not asked: what holds goes on to hold. A document that was for someone else's
        name, before the owner renamed the device, is left out; one that cannot be proven, or means
        nothing any more, may have forbidden something.
        """
        proven: dict[str, Configuration] = {}
        unproven: set[str] = set()
        for name in sorted(self._state.held, key=_rank):
            found = self._prove(name, self._state.held[name], proven)
            if isinstance(found, Configuration):
                proven[name] = found
            elif found == "unproven":
                unproven.add(name)
        return proven, frozenset(unproven)

    def _prove(
        self, name: str, envelope: Envelope, beside: Mapping[str, Configuration]
    ) -> Configuration | Literal["unproven", "other"]:
        try:
            document = self._gate.prove(envelope)
            if isinstance(document, Configuration) and str(document.audience) == name:
                _merge(self._local, {**beside, name: document})
                return document
        except RefusedError as error:
            if error.reason in {"tenant", "audience"}:
                _LOG.warning("%s holds no more: %s", name, error.message)
                return "other"
            self.refuse(error)
        except EdgekitError as error:
            self.refuse(RefusedError("setting", error.message, error.remedy))
        else:
            self.refuse(RefusedError("malformed", f"what is held as {name} is for another"))
        return "unproven"


def _rank(name: str) -> tuple[bool, str]:
    """Return where a document stands: the device's own last."""
    return name.startswith("device:"), name


def _merge(local: Local, documents: Mapping[str, Configuration]) -> Effective:
    return merge(local, [documents[name].settings for name in sorted(documents, key=_rank)])


def _rows(answer: bytes) -> Sequence[Envelope | RefusedError]:
    """Return the documents of an answer, each an envelope or why it is none.

    Raises:
        RefusedError: It is no such answer.
    """
    try:
        data = parse_document(answer, "the service's answer", MAX_ANSWER_BYTES)
        check_fields(data, {"documents": "list"}, "the service's answer")
    except BundleError as error:
        raise RefusedError("malformed", error.message, "Ask who runs the service") from error
    rows = data["documents"]
    if len(rows) > MAX_DOCUMENTS:
        raise RefusedError("too_large", f"the answer has {len(rows)} documents")
    return [_envelope(row) for row in rows]


def _envelope(row: Any) -> Envelope | RefusedError:
    try:
        return Envelope.from_dict(row)
    except MessageError as error:
        return RefusedError("malformed", error.message, error.remedy)
