"""Optimize: Optimum's ORTOptimizer fuses the nodes of an exported graph.

O1 rewrites as ONNX Runtime does by default, O2 adds its extended fusions and those for transformers, O3 approximates
Gelu as well, and O4 is O3 in fp16 for CUDA.
"""

from checkpoints.generations import EXPORTERS, OPTIMUM, exporter_here
from export.args import DEVICES, LEVELS, PRECISIONS
from export.graphs.graph import Graphs, save, sort
from pipelines.errors import CheckpointError, ConfigurationError, first_line


def check_options(precision: str, optimize: str | None, device: str, exporter: str = OPTIMUM) -> None:
    """Raises ConfigurationError, with the reason, for a value that does not exist and for pairs that do not work."""
    for name, value, allowed in (("precision", precision, PRECISIONS), ("device", device, DEVICES)):
        if value not in allowed:
            raise ConfigurationError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
    if optimize not in (None, *LEVELS):
        raise ConfigurationError(f"optimize is {optimize!r}; allowed: {', '.join(LEVELS)}")
    if exporter not in EXPORTERS:
        raise ConfigurationError(f"exporter is {exporter!r}; allowed: {', '.join(EXPORTERS)}")
    if exporter != OPTIMUM and optimize is not None:
        raise ConfigurationError(
            f"optimize {optimize} is a level of Optimum's, which exporter {exporter} is without; leave --optimize out"
        )
    if precision == "int8" and device != "cpu":
        raise ConfigurationError(
            "precision int8 is for the CPU: CUDA has no kernels for dynamically quantized matrices, "
            f"they would run on the CPU; use --precision fp16 with --device {device}"
        )
    if precision == "int4" and optimize is not None:
        raise ConfigurationError(
            f"precision int4 is for graphs that decode in slots, and optimize {optimize} does not know these; "
            f"leave --optimize out, or use --precision {'int8' if device == 'cpu' else 'fp16'}"
        )
    if precision == "fp16" and device == "cpu":
        raise ConfigurationError(
            "precision fp16 is for CUDA: a CPU converts every fp16 tensor to fp32 and back; "
            "use --precision int8 or fp32 with --device cpu"
        )
    if device == "tensorrt" and optimize is not None:
        raise ConfigurationError(
            f"optimize {optimize} puts operators into the graph that TensorRT does not know; leave --optimize out"
        )
    if (optimize == "O4") != (precision == "fp16" and optimize is not None):
        raise ConfigurationError(
            f"optimize O4 and precision fp16 belong together (got {optimize} with {precision}); "
            "leave --optimize out, or choose O1, O2 or O3 for fp32 and int8"
        )


def default_level(precision: str, device: str, *, generates: bool) -> str | None:
    """The level where the options name none. TensorRT fuses by itself, and knows none of the fused operators.

    fp32 encoders gain from O2's fusions and stay exact. Dynamic int8 is faster from the plain graph, which ONNX Runtime
    fuses by itself after quantization. No fusion matches a decoder with a KV cache.
    """
    if device == "tensorrt":
        return None
    if precision == "fp16":
        return "O4"
    return "O2" if precision == "fp32" and not generates else None


def optimize(graphs: Graphs, level: str, architecture: str, device: str) -> None:
    """Rewrite the graphs in place; their folder holds the config.json. Raises CheckpointError where it fails."""
    import onnx
    from optimum.onnxruntime import AutoOptimizationConfig, ORTOptimizer
    from optimum.onnxruntime.utils import ORTConfigManager

    if not supports(architecture):
        known = ", ".join(ORTConfigManager._conf)
        raise CheckpointError(
            f"optimize {level} is not known for the architecture {architecture!r}; it is for: {known}"
        )
    folder = next(iter(graphs.values())).parent
    # O4 is O3 and fp16, and fp16 is a precision (export.quantization.quantize), also for architectures without fusions.
    settings = AutoOptimizationConfig.with_optimization_level(level.replace("O4", "O3"), for_gpu=device == "cuda")
    settings.disable_shape_inference = True  # it fails on symbolic dimensions, and only fp16 needs it
    settings.disable_rotary_embeddings = True  # the fused operator ends at a fixed position
    try:
        optimizer = ORTOptimizer.from_pretrained(folder, file_names=[graph.name for graph in graphs.values()])
        optimizer.optimize(settings, save_dir=folder, file_suffix="")
        for graph in graphs.values():  # its own sorting overlooks what branches read
            model = onnx.load(graph)
            sort(model)
            save(model, graph)
    except Exception as error:  # fusions fail in onnx, in protobuf or in onnxruntime, each with types of its own
        raise CheckpointError(
            f"optimize {level} fails on this {architecture} graph ({first_line(error)}); choose another"
        ) from error


def supports(architecture: str) -> bool:
    """Whether ORTOptimizer is here, and knows the architecture."""
    if exporter_here() != OPTIMUM:
        return False
    from optimum.onnxruntime.utils import ORTConfigManager

    return architecture in ORTConfigManager._conf
