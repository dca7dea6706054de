"""Options of ONNX Runtime sessions that edgekit relies on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from edgekit.engine.derived import as_ort_values

SKIP_NORM_IN_FLOAT32 = (1, 30)
"""Before onnxruntime's pull request 28682 SkipSimplifiedLayerNormalization summed squares in
float16 on CUDA, which overflows and underflows; its strict mode does not. That went in after 1.26;
a few releases more are held to strict mode, which costs them a little."""
EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
"""Where the weights of a graph lie that is loaded from memory.

Source: onnxruntime_session_options_config_keys.h."""


def session_options(
    threads: int | None,
    *,
    exact: bool,
    derived: Mapping[str, npt.NDArray[Any]] | None,
    settings: Mapping[str, str] | None,
) -> Any:
    """Return the options of a session; see ``engine.ort.OrtSession`` for the arguments."""
    import onnxruntime as ort  # noqa: PLC0415

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.log_severity_level = 3
    # int8 activations in MatMulNBits: without it 8-bit weights run a hundred times slower.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    if exact:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for key, value in (settings or {}).items():
        options.add_session_config_entry(key, value)
    if derived:
        options.add_external_initializers(*as_ort_values(derived))
    return options


def cuda_options(version: str, *, cuda_graph: bool) -> dict[str, str]:
    """Return the CUDA provider's options.

    Args:
        version: ONNX Runtime's.
        cuda_graph: Capture the runs that have a graph's annotation.
    """
    options = {"enable_cuda_graph": "1"} if cuda_graph else {}
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < SKIP_NORM_IN_FLOAT32:
        options["enable_skip_layer_norm_strict_mode"] = "1"
    return options
