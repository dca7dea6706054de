"""The bundle of an earlier version, whose scales a new build keeps where that costs no accuracy.

Codes are weights divided by scales: a scale searched anew moves by a percent and takes codes of
unchanged weights with it. Kept scales keep them, and the update that a fleet fetches is small.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edgekit.bundle.diff import diff_bundles
from edgekit.bundle.reader import Bundle, open_bundle
from edgekit.contracts.manifest import TensorEntry
from edgekit.errors import BundleError, RecipeError
from edgekit.graph.exponents import Exponents
from edgekit.graph.float16_range import AttentionRange, NormRange
from edgekit.graph.weights import codes_name, scales_name
from edgekit.models.config import Linear, ModelConfig, all_linears
from edgekit.pipeline.quality import Reference
from edgekit.pipeline.request import BuildRequest, Update
from edgekit.quant.plan import Schemes
from edgekit.quant.scheme import QuantScheme

SPARE_EXPONENT = 4
"""Most powers of two that a base may hold down activations more than this version needs."""


@dataclass(frozen=True, slots=True)
class Base:
    """An earlier bundle of the same model.

    Attributes:
        bundle: As opened.
        entries: Its tensors by name.
        exponents: The powers of two its weights were multiplied by.
    """

    bundle: Bundle
    entries: dict[str, TensorEntry]
    exponents: Exponents

    def scales(self, linear: Linear, scheme: QuantScheme) -> npt.NDArray[np.float32] | None:
        """Return a linear's scales, float32 [N, G], exponents taken out again.

        Returns:
            None if it is stored otherwise: dense, in another scheme, of another shape.

        Raises:
            DigestMismatchError: The base is damaged.
        """
        if not self.matches(linear, scheme):
            return None
        stored = self.bundle.read_tensor(self.entries[scales_name(linear.name)], check=True)
        exponent = self.exponents.of_weight(linear.name)
        scales: npt.NDArray[np.float32] = np.ldexp(stored.T.astype(np.float32), -exponent)
        return np.ascontiguousarray(scales)

    def matches(self, linear: Linear, scheme: QuantScheme) -> bool:
        """Whether the linear is stored here as it will be stored anew."""
        codes = self.entries.get(codes_name(linear.name))
        shape = (linear.in_features, linear.out_features)
        return codes is not None and (codes.scheme, codes.shape) == (scheme.label, shape)

    def keep_exponents(self, reference: Reference) -> Exponents:
        """Return exponents that are safe and, where they may be, the base's own."""
        needed, own, held = reference.exponents, self.exponents, reference.held
        kept = Exponents(
            residual=_keep(needed.residual, own.residual),
            mlp=_keep_all(needed.mlp, own.mlp),
            value=_keep_all(needed.value, own.value),
            input_norm=_keep_norms(held.input_norm, needed.input_norm, own.input_norm),
            post_attention_norm=_keep_norms(
                held.post_attention_norm, needed.post_attention_norm, own.post_attention_norm
            ),
            final_norm=_keep_norm(held.final_norm, needed.final_norm, own.final_norm),
        )
        if not needed.query_norm:
            query, key = _keep_pairs(
                held.attention, (needed.query, needed.key), (own.query, own.key)
            )
            return replace(kept, query=query, key=key)
        query, key = _keep_pairs(
            held.attention, (needed.query_norm, needed.key_norm), (own.query_norm, own.key_norm)
        )
        return replace(
            kept,
            query=_keep_all(needed.query, own.query),
            key=_keep_all(needed.key, own.key),
            query_norm=query,
            key_norm=key,
        )


def describe_update(base: Base, bundle: Bundle) -> Update:
    """Return what the update from ``base`` to ``bundle`` keeps and costs."""
    kept = total = 0
    for entry in bundle.manifest.tensors:
        if entry.role != "scales":
            continue
        total += entry.size_bytes // 2
        old = base.entries.get(entry.name)
        if old is not None and old.shape == entry.shape:
            kept += int((bundle.read_tensor(entry) == base.bundle.read_tensor(old)).sum())
    transfer = diff_bundles(base.bundle, bundle).transfer_bytes
    return Update(base.bundle.digest, total, kept, transfer)


def open_base(request: BuildRequest, config: ModelConfig, schemes: Schemes) -> Base | None:
    """Open the bundle that a build is an update of; None when it is none.

    Raises:
        BundleError: It is damaged, would be overwritten, or no linear of it is stored as this build
            will store it.
        RecipeError: The recipe chooses codes by calibration.
    """
    path, recipe = request.base, request.recipe
    if path is None:
        return None
    if path.resolve() == request.out.resolve():
        raise BundleError(f"{path} is both --base and --out", "Give the update a folder of its own")
    if recipe.quant.algorithm != "rtn":
        raise RecipeError(
            f"--base does nothing for {recipe.name}: {recipe.quant.algorithm} chooses scales and "
            "codes together",
            "Leave --base out, or use a recipe that rounds to nearest",
        )
    bundle = open_bundle(path)
    entries = {entry.name: entry for entry in bundle.manifest.tensors}
    base = Base(bundle, entries, _read_exponents(bundle))
    planned = [(x, scheme) for x in all_linears(config) if (scheme := schemes[x.name]) is not None]
    if not any(base.matches(linear, scheme) for linear, scheme in planned):
        raise BundleError(
            f"{path} has no scales to keep: it was built from a model of other shapes, or with "
            f"other group sizes than {recipe.name}",
            "Give a bundle of an earlier version of this model, built with the same recipe",
        )
    return base


def _read_exponents(bundle: Bundle) -> Exponents:
    data = bundle.manifest.f16_exponents
    try:
        return Exponents.from_dict(data)
    except (TypeError, ValueError) as error:
        raise BundleError(f"the manifest of {bundle.path} has wrong f16_exponents") from error


def _keep(needed: int, own: int) -> int:
    return own if 0 <= own - needed <= SPARE_EXPONENT else needed


def _keep_all(needed: tuple[int, ...], own: tuple[int, ...]) -> tuple[int, ...]:
    if len(needed) != len(own):
        return needed
    return tuple(map(_keep, needed, own))


def _keep_norm(held: NormRange, needed: int, own: int) -> int:
    return own if abs(own) - abs(needed) <= SPARE_EXPONENT and held.fits(own) else needed


def _keep_norms(
    held: tuple[NormRange, ...], needed: tuple[int, ...], own: tuple[int, ...]
) -> tuple[int, ...]:
    if len(needed) != len(own):
        return needed
    return tuple(map(_keep_norm, held, needed, own))


_Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""Exponents of every layer's queries, and of its keys."""


def _keep_pairs(held: tuple[AttentionRange, ...], needed: _Pair, own: _Pair) -> _Pair:
    """Keep both exponents of a layer or none: one shrunk more makes the other's scale larger."""
    if [len(part) for part in needed] != [len(part) for part in own]:
        return needed
    pairs = []
    for layer, wanted, kept in zip(
        held, zip(*needed, strict=True), zip(*own, strict=True), strict=True
    ):
        spare = sum(map(abs, kept)) - sum(map(abs, wanted))
        pairs.append(kept if spare <= SPARE_EXPONENT and layer.fits(*kept) else wanted)
    return tuple(query for query, _ in pairs), tuple(key for _, key in pairs)
