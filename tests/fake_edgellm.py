"""An environment with ``tensorrt-edgellm`` as far as edgekit's driver goes: its documented API.

``experimental.server`` (0.11) over a session of edgekit's: it answers greedily out of the bundle
that ``FAKE_BUNDLE`` names, and gives each token's log-probability plus ``FAKE_ERROR`` nats.
"""

from __future__ import annotations

import sys
from pathlib import Path

SERVER = """
import os
from dataclasses import dataclass, field
from pathlib import Path
import numpy as np
from edgekit.bundle.reader import open_bundle
from edgekit.engine.load import load_bundle

@dataclass
class SamplingParams:
    temperature: float = 0.7
    max_tokens: int = 2048
    enable_thinking: bool = False
    num_logprobs: int = 0
    reuse_context: bool = True

@dataclass
class Entry:
    token_id: int
    logprob: float

@dataclass
class Output:
    token_ids: list
    prompt_tokens: int
    logprobs: list = field(default_factory=list)

class LLM:
    def __init__(self, model, *, cache_dir, max_input_len, max_kv_cache_capacity):
        assert all((Path(model) / f"{name}.json").is_file() for name in ("config", "tokenizer"))
        if os.environ.get("FAKE_CRASH"):
            raise RuntimeError("no kernel image is available\\nfor this device")
        Path(cache_dir).mkdir(exist_ok=True)
        self.model = load_bundle(open_bundle(Path(os.environ["FAKE_BUNDLE"])), provider="cpu")

    def generate_stream(self, messages, params):
        assert params.temperature == 0
        model, error = self.model, float(os.environ.get("FAKE_ERROR", 0))
        text = os.environ.get("FAKE_SYSTEM", "") + model.prompt(messages)
        prompt = model.tokenizer.encode(text)
        row = model.session.prefill(0, prompt)
        for step in range(params.max_tokens):
            token = int(row.argmax())
            wide = row.astype(np.float64)
            said = wide[token] - np.logaddexp.reduce(wide) + error
            yield Output([token], len(prompt), [[Entry(token, said)]] * (params.num_logprobs > 0))
            row = model.session.decode([0], [token], [len(prompt) + step])[0]

    def chat(self, messages, params):
        said = list(self.generate_stream(messages, params))
        tokens = [x.token_ids[0] for x in said]
        return Output(tokens, said[0].prompt_tokens, [x.logprobs[0] for x in said])

    def close(self):
        self.model.session.close()
"""


def make_environment(folder: Path, bundle: Path, **settings: str) -> Path:
    """Write the environment; returns its Python.

    Args:
        folder: To make.
        bundle: What answers.
        settings: Further environment variables of the fake.
    """
    package, info = folder / "experimental", folder / "tensorrt_edgellm-0.11.0.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    (package / "__init__.py").touch()
    (package / "server.py").write_text(SERVER)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: tensorrt-edgellm\nVersion: 0.11.0\n"
    )
    python = folder / "python"
    set_all = "".join(f"export {name}='{value}'\n" for name, value in settings.items())
    paths = ":".join([str(folder), *filter(None, sys.path)])
    python.write_text(
        f"#!/bin/sh\nexport FAKE_BUNDLE='{bundle}'\n{set_all}"
        f"PYTHONPATH='{paths}' exec '{sys.executable}' \"$@\"\n"
    )
    python.chmod(0o755)
    return python
