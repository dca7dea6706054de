"""Builds one TensorRT engine by its plan, and looks at what became of the graph.

The compile check and the device build with this same code. The network is strongly typed, so a
type is what the graph says or the build fails. Attention is asked for as one fused kernel first;
where the builder has none for these shapes it says so, and primitives are allowed instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import onnx

from edgekit.contracts.engine_plan import EnginePlan, Profile, input_shapes
from edgekit.errors import EngineError, GraphError
from edgekit.trt.module import NO_GPU, BuilderInfo, MessageLog, load_module, require_version
from edgekit.trt.specialize import specialize

NO_FUSED_KERNEL = "not supported by a dedicated kernel"
"""What the builder says where attention may not be decomposed and must be."""
_OUT_OF_MEMORY = ("out of memory", "outofmemory", "bad_alloc", "std::bad_alloc")

Attention = Literal["fused", "decomposed"]
Sink = Callable[[memoryview], None]
Phase = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What was parsed and built.

    Attributes:
        engine_bytes: Length of the serialized engine.
        weights_bytes: Of it the weights, as the builder counts them.
        layer_types: Layers of the parsed network by type.
        dequantized: Weights that stay codes: what the network's dequantizations read.
        attention: How attention runs; ``decomposed`` where the graph spells it out, too.
        profiles: Names of the profiles built.
    """

    engine_bytes: int
    weights_bytes: int
    layer_types: dict[str, int]
    dequantized: tuple[str, ...]
    attention: Attention
    profiles: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that a worker hands back."""
        return asdict(self)


def build_engine(
    model: onnx.ModelProto,
    path: Path,
    plan: EnginePlan,
    info: BuilderInfo,
    *,
    profiles: Collection[str] | None = None,
    sink: Sink | None = None,
    phase: Phase | None = None,
) -> EngineFacts:
    """Parse a graph and build its engine.

    Args:
        model: The graph, external data not loaded; it is specialized to the plan.
        path: Where it stands, above its external data.
        plan: How to build it.
        info: The builder.
        profiles: Names of the plan's profiles to build; None builds all.
        sink: Takes the serialized engine piece by piece; None throws it away.
        phase: Told what the builder begins.

    Raises:
        GraphError: The parser refuses the graph or leaves out an input, by the node's name; or
            the network has other types than the graph.
        EngineError: The builder fails, or it is asked for an engine to keep and is not of the
            plan's versions.
    """
    if sink is not None:
        require_version(info, plan.tensorrt)
    trt = load_module(info)
    specialize(model, plan.cache_capacity)
    wanted = [p for p in plan.profiles if profiles is None or p.name in profiles]
    try:
        return _Build(trt, info, plan, wanted).run(model, path, sink, phase)
    except NoFusedKernelError:
        primitives = replace(plan, decomposable_attention=True)
        return _Build(trt, info, primitives, wanted).run(model, path, sink, phase)


class NoFusedKernelError(EngineError):
    """The builder has no fused attention for these shapes."""


class _Build:
    """One try: a builder, its network and what it said."""

    def __init__(
        self, trt: Any, info: BuilderInfo, plan: EnginePlan, profiles: list[Profile]
    ) -> None:
        self.trt, self.info, self.plan, self.profiles = trt, info, plan, profiles
        self.log = MessageLog()
        self.logger = self.log.logger(trt)
        self.builder = trt.Builder(self.logger)
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        # TensorRT 11 knows no other kind of network, and may lack the flag.
        self.network = self.builder.create_network(0 if flag is None else 1 << int(flag))
        if flag is not None and not self.network.get_flag(flag):
            raise GraphError(f"{info.name} made a network that is not strongly typed")

    def run(
        self, model: onnx.ModelProto, path: Path, sink: Sink | None, phase: Phase | None
    ) -> EngineFacts:
        self._parse(model, path)
        types, dequantized = self._look()
        attention = self._allow_primitives()
        refuse_ignored(model.graph, *self._tensors(), self.plan.graph)
        written = self._serialize(self._config(phase), sink or _discard)
        weights = self.log.weights_bytes
        if weights is None:
            raise EngineError(f"{self.info.name} did not say how large the engine's weights are")
        names = tuple(profile.name for profile in self.profiles)
        return EngineFacts(written, weights, types, dequantized, attention, names)

    def _parse(self, model: onnx.ModelProto, path: Path) -> None:
        parser = self.trt.OnnxParser(self.network, self.logger)
        if parser.parse(model.SerializeToString(), str(path)):
            return
        if parser.num_errors == 0:
            raise GraphError(f"{self.info.name}'s parser refuses {path.name}: it does not say why")
        error = parser.get_error(0)
        said = " ".join(line for line in error.desc().splitlines() if NO_GPU not in line)
        node = error.node_name() or "without a name"
        raise GraphError(
            f"{self.info.name} {self.info.version}'s parser refuses {path.name} at node {node} "
            f"({error.node_operator() or 'the graph'}): {said}"
        )

    def _look(self) -> tuple[dict[str, int], tuple[str, ...]]:
        """Return the network's layers by type, and the codes that are dequantized in it."""
        codes_types = {self.trt.DataType.INT4, self.trt.DataType.INT8}
        types: Counter[str] = Counter()
        dequantized = []
        for layer in self._layers():
            types[layer.type.name] += 1
            if layer.type == self.trt.LayerType.DEQUANTIZE:
                source = layer.get_input(0)
                if source.dtype in codes_types:
                    dequantized.append(source.name.removesuffix("_output"))
        return dict(sorted(types.items())), tuple(sorted(dequantized))

    def _allow_primitives(self) -> Attention:
        """Mark attention decomposable where the plan says so; returns how it will run."""
        kind = getattr(self.trt.LayerType, "ATTENTION_INPUT", None)
        inputs = [layer for layer in self._layers() if kind is not None and layer.type == kind]
        if inputs and not self.plan.decomposable_attention:
            return "fused"
        for layer in inputs:
            layer.__class__ = self.trt.IAttentionInputLayer
            layer.attention.decomposable = True
        return "decomposed"

    def _tensors(self) -> tuple[set[str], set[str]]:
        """Return the names of the network's tensors, and of those that something reads."""
        network = self.network
        made = {network.get_input(i).name for i in range(network.num_inputs)}
        read = {network.get_output(i).name for i in range(network.num_outputs)}
        for layer in self._layers():
            made |= {layer.get_output(i).name for i in range(layer.num_outputs)}
            inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
            read |= {tensor.name for tensor in inputs if tensor is not None}
        return made, read

    def _layers(self) -> list[Any]:
        return [self.network.get_layer(i) for i in range(self.network.num_layers)]

    def _config(self, phase: Phase | None) -> Any:
        trt, config = self.trt, self.builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, self.plan.workspace_bytes)
        if self.info.name == "TensorRT-RTX":
            config.num_compute_capabilities = 1
            capability = getattr(trt.ComputeCapability, "SM" + self.info.sm.replace(".", ""))
            config.set_compute_capability(capability, 0)
        if phase is not None:
            config.progress_monitor = _monitor(trt, phase)
        inputs = [self.network.get_input(i) for i in range(self.network.num_inputs)]
        for profile in self.profiles:
            shapes = self.builder.create_optimization_profile()
            for tensor in inputs:
                dims = tuple(tensor.shape)
                shapes.set_shape(tensor.name, *input_shapes(self.plan, profile, tensor.name, dims))
            config.add_optimization_profile(shapes)
        return config

    def _serialize(self, config: Any, sink: Sink) -> int:
        """Build the engine into ``sink``; returns its bytes."""
        if hasattr(self.builder, "build_serialized_network_to_stream"):
            writer = _writer(self.trt, sink)
            if not self.builder.build_serialized_network_to_stream(self.network, config, writer):
                raise self._failure()
            return int(writer.written)
        # TensorRT 10.3 has no such method: one more copy of the engine in memory.
        engine = self.builder.build_serialized_network(self.network, config)
        if engine is None:
            raise self._failure()
        sink(memoryview(engine))
        return int(engine.nbytes)

    def _failure(self) -> EngineError:
        said = self.log.reason()
        everything = " ".join(self.log.errors).lower()
        if NO_FUSED_KERNEL in everything and not self.plan.decomposable_attention:
            return NoFusedKernelError(said)
        if any(word in everything for word in _OUT_OF_MEMORY):
            return EngineError(
                f"{self.info.name} ran out of memory building {self.plan.graph}: {said}",
                "Free memory, or lower --max-context",
            )
        return EngineError(
            f"{self.info.name} {self.info.version} cannot build {self.plan.graph}: {said}"
        )


def refuse_ignored(graph: onnx.GraphProto, made: set[str], read: set[str], name: str) -> None:
    """Refuse a network in which something is not read that the graph's nodes read.

    TensorRT's parser passes over inputs of operators that it does not know, such as Attention's
    ``nonpad_kv_seqlen``, without a word.

    Args:
        graph: What was parsed.
        made: Names of the network's tensors.
        read: Those of them that a layer or an output reads.
        name: The graph's name, for the error.

    Raises:
        GraphError: Names the value and a node that should read it.
    """
    for node in graph.node:
        for index, value in enumerate(node.input):
            if value in made and value not in read:
                raise GraphError(
                    f"TensorRT's parser ignores input {index} of {node.op_type} {node.name} in "
                    f"{name}: nothing reads {value}"
                )


def _discard(data: memoryview) -> None:
    del data


def _writer(trt: Any, sink: Sink) -> Any:
    class Writer(trt.IStreamWriter):  # type: ignore[misc]  # the base comes with the builder
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.written = 0

        def write(self, data: bytes) -> int:
            sink(memoryview(data))
            self.written += len(data)
            return len(data)

    return Writer()


def _monitor(trt: Any, phase: Phase) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base comes with the builder
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            del parent_phase, num_steps
            phase(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            del phase_name

        def step_complete(self, phase_name: str, step: int) -> bool:
            del phase_name, step
            return True

    return Monitor()
