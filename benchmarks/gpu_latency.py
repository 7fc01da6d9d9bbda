"""Latency of the engines beside that of torch, for `gpu_check.py`: interleaved, by CUDA events, copies included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

from gpu_material import Answer, Material, device, guarded, smi

TimedCall = Callable[[], float]


@dataclass(frozen=True)
class Torch:
    """One way to run the network in torch; `mode` is that of torch.compile, None for eager."""

    name: str
    dtype: str
    mode: str | None = None


TORCH = (
    Torch("torch fp32", "float32"),
    Torch("torch bf16", "bfloat16"),
    Torch("torch.compile fp32", "float32", "default"),
    Torch("torch.compile bf16", "bfloat16", "default"),
    Torch("torch.compile bf16, CUDA graphs", "bfloat16", "reduce-overhead"),
)


def latency(material: Material) -> Answer:
    """Every form that runs here in the same blocks, batch by batch; ratios against the int8 engine."""
    from compress.measure.latency import latency_ratio, measure_interleaved

    settings, answers = material.settings, dict[str, Any]()
    material.need("files")
    for batch in settings.batches:
        feed = material.images.repeat(-(-batch // len(material.images)), axis=0)[:batch]
        calls, problems = working_calls(material, feed)
        before = smi()
        taken = measure_interleaved(
            calls,
            blocks=settings.blocks,
            slot_iterations=10,
            slot_ms=settings.slot_ms,
            warmup_iterations=10,
            warmup_ms=settings.warmup_ms,
        )
        base = "engine int8" if "engine int8" in taken else "onnxruntime int8 unsigned"
        answers[str(batch)] = {
            "variants": {
                name: {
                    **{f"p{percent}_ms": one.percentile_ms(percent) for percent in (50, 90)},
                    "p99_ms": one.p99_ms,
                    "n": len(one.samples_ms),
                    "samples_per_s": batch * one.calls_per_s,
                    f"over {base}": asdict(latency_ratio(one, taken[base])) if base in taken else None,
                }
                for name, one in taken.items()
            },
            "problems": problems,
            "nvidia_smi": [before, smi()],
        }
    return {"device": device(), "batches": answers}


def working_calls(material: Material, feed: Any) -> tuple[dict[str, TimedCall], Answer]:
    """Every inference that works here, and why the others do not."""
    calls: dict[str, TimedCall] = {}
    problems: Answer = {}

    def load(name: str, make: Callable[[], TimedCall]) -> Answer:
        call = make()
        for _ in range(2):  # compilation fails at the first one
            call()
        calls[name] = call
        return {}

    for name, make in callables(material, feed):
        entry = guarded(lambda name=name, make=make: load(name, make))
        if entry["status"] != "done":
            problems[name] = entry
    return calls, problems


def callables(material: Material, feed: Any) -> Iterator[tuple[str, Callable[[], TimedCall]]]:
    """Names, and what loads each into one timed inference."""
    from compress.engines.onnxruntime_session import OnnxRuntimeSession
    from compress.engines.tensorrt_session import TensorRTSession
    from compress.pipeline.machine import resolve_threads

    where, inputs = device(), {"image": feed}
    for name, plan in material.plans.items():
        yield f"engine {name}", lambda plan=plan: TensorRTSession.load(plan).timed(inputs)
        yield f"engine {name}, CUDA graphs", lambda plan=plan: graph_call(plan, inputs)
    for one in TORCH:
        if (one.mode is None or material.settings.compiled) and (one.mode != "reduce-overhead" or where == "cuda"):
            yield one.name, lambda one=one: torch_call(material.teacher, one, feed, where)
    if where == "cpu":
        threads = resolve_threads("auto")
        for name, file in (("onnxruntime fp32", "float"), ("onnxruntime int8 unsigned", "int8 unsigned")):
            path = material.files[file]
            yield name, lambda path=path: OnnxRuntimeSession.load(path, threads=threads).timed(inputs)


def graph_call(plan: Any, inputs: Any) -> TimedCall:
    """One inference started as a CUDA graph.

    Raises:
        UnavailableError: the engine is not captured, with the reason; its plain launches have a row of their own.
    """
    from compress.engines.tensorrt_session import TensorRTSession
    from compress.errors import UnavailableError

    session = TensorRTSession.load(plan, graphs=True)
    call = session.timed(inputs)
    call()  # captures
    if (said := session.describe()["cuda_graphs"]) != "yes":
        raise UnavailableError(f"CUDA graphs: {said}")
    return call


def torch_call(teacher: Any, kind: Torch, feed: Any, where: str) -> TimedCall:
    """One inference in torch, timed as engines are: from the first copy to the device to the last one back."""
    import torch

    from compress.engines.session import wall_timed

    dtype = getattr(torch, kind.dtype)
    module = deepcopy(teacher).to(device=where, dtype=dtype).eval()
    if where == "cuda":
        module = module.to(memory_format=torch.channels_last)  # what its tensor-core kernels want

    def answer(image: Any) -> Any:
        return module(image.to(dtype)).float()

    compute = answer if kind.mode is None else torch.compile(answer, mode=kind.mode, dynamic=False)
    host = torch.from_numpy(feed)
    if where == "cpu":
        return wall_timed(torch.no_grad()(lambda: compute(host).numpy()))
    host, image = host.pin_memory(), torch.empty_like(host, device=where)
    with torch.no_grad():
        result = torch.empty(answer(host.to(where)).shape, pin_memory=True)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    @torch.no_grad()
    def timed() -> float:
        start.record()
        image.copy_(host, non_blocking=True)
        result.copy_(compute(image), non_blocking=True)
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    return timed
