"""How a bundle says its linears are stored, held to its architecture.

Standard library beneath it: a device that verifies a bundle reads it, too.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.contracts.manifest import TensorEntry
from edgekit.errors import BundleError
from edgekit.graph.weights import codes_name, scales_name
from edgekit.models.config import Linear, ModelConfig, all_linears
from edgekit.quant.scheme import QuantScheme, scheme_of_label


def stored_schemes(
    tensors: Sequence[TensorEntry], config: ModelConfig
) -> dict[str, QuantScheme | None]:
    """Return each linear's scheme as the manifest's tensors say; None is a dense weight.

    Args:
        tensors: The manifest's.
        config: Its architecture.

    Raises:
        BundleError: A scheme is not known, or codes or scales are not of their linear's shape.
    """
    entries = {entry.name: entry for entry in tensors}
    schemes: dict[str, QuantScheme | None] = {}
    for linear in all_linears(config):
        codes, scales = (entries.get(f(linear.name)) for f in (codes_name, scales_name))
        schemes[linear.name] = None if codes is None else _scheme(linear, codes, scales)
    return schemes


def _scheme(linear: Linear, codes: TensorEntry, scales: TensorEntry | None) -> QuantScheme:
    """Return the scheme of a linear's codes [K, N], whose scales are [G, N]."""
    try:
        scheme = scheme_of_label(codes.scheme or "")
        groups = scheme.groups(linear.in_features)
    except ValueError as error:
        raise BundleError(f"{linear.name}: {error}", "Upgrade edgekit") from error
    wanted = (f"int{scheme.bits}", (linear.in_features, linear.out_features))
    if (codes.dtype, codes.shape) != wanted:
        raise BundleError(
            f"{codes.name} is {codes.dtype} {list(codes.shape)}, not {wanted[0]} {list(wanted[1])}"
        )
    if scales is None or (scales.dtype, scales.shape) != ("float16", (groups, wanted[1][1])):
        raise BundleError(f"{linear.name} has no float16 scales of {[groups, wanted[1][1]]}")
    return scheme
