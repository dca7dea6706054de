"""The headers of a hub repository's weights, read where they are: a few kilobytes of gigabytes.

Needs the hub, since its client keeps no parts of files; whole files in its cache are another
module's (``hub.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit.checkpoint.hub import hub_errors
from edgekit.checkpoint.safetensors import (
    PREFIX_BYTES,
    StoredTensor,
    header_bytes,
    parse_header,
)
from edgekit.errors import CheckpointError, HubError

FIRST_BYTES = 128 * 1024
"""Asked for at first: most headers are no longer, and a second request takes longer than these."""
PARTIAL_CONTENT = 206
_AGAIN = "Run the same command again"


@dataclass(frozen=True, slots=True)
class RemoteFiles:
    """The files at the top of a repository.

    Attributes:
        model: Hub id.
        commit: Commit they are of.
        sizes: Bytes of each by name.
    """

    model: str
    commit: str
    sizes: dict[str, int]

    def read_header(self, path: Path) -> dict[str, StoredTensor]:
        """Read and check the header of one safetensors file.

        Args:
            path: Where the file would be; its name is that in the repository.

        Returns:
            Its tensors by name. They say where their bytes are; mapping them fails.

        Raises:
            CheckpointError: There is no such file, or its header is damaged.
            HubError: The hub does not answer, or does not give parts of files.
        """
        size = self.sizes.get(path.name)
        if size is None:
            raise CheckpointError(
                f"{self.model} has no {path.name}", "Its upload is not complete: use another"
            )
        start = self._read(path.name, 0, min(FIRST_BYTES, size))
        stop = PREFIX_BYTES + header_bytes(path, start[:PREFIX_BYTES], size)
        if stop > len(start):
            start += self._read(path.name, len(start), stop)
        return parse_header(path, start[PREFIX_BYTES:stop], size)

    def _read(self, name: str, start: int, stop: int) -> bytes:
        """Fetch bytes ``start:stop`` of a file, and no others whatever the server sends."""
        if stop <= start:
            return b""
        with hub_errors(self.model, self.commit, _AGAIN):
            import huggingface_hub as hub  # noqa: PLC0415 - optional, and slow to import
            from huggingface_hub.utils import (  # type: ignore[attr-defined]  # noqa: PLC0415
                build_hf_headers,  # documented, but not marked as exported
            )

            url = hub.hf_hub_url(self.model, name, revision=self.commit)
            headers = {
                **build_hf_headers(),
                "range": f"bytes={start}-{stop - 1}",
                "accept-encoding": "identity",
            }
            with hub.get_session().stream("GET", url, headers=headers) as response:
                if response.is_error:
                    response.read()  # the client's error repeats it
                hub.hf_raise_for_status(response)
                whole = response.status_code == PARTIAL_CONTENT
                data = response.read() if whole else b""
        if len(data) != stop - start:
            raise HubError(
                f"the hub does not give bytes {start} to {stop} of {self.model}'s {name}",
                f"Fetch it whole: hf download {self.model}",
            )
        return bytes(data)


def list_files(model: str, commit: str) -> RemoteFiles:
    """Ask the hub which files a repository has.

    Raises:
        HubError: It does not answer.
    """
    with hub_errors(model, commit, _AGAIN):
        from huggingface_hub.hf_api import HfApi, RepoFile  # noqa: PLC0415 - slow to import

        entries = HfApi().list_repo_tree(model, revision=commit)
        files = [entry for entry in entries if isinstance(entry, RepoFile)]
    return RemoteFiles(model, commit, {f.path: f.size for f in files if "/" not in f.path})
