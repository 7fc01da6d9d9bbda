"""What a variant costs in a process that has just started: medians for comparing reports, cold start, peak memory.

Two processes that run the same file differ by a few percent, because their memory is laid out differently. Iterations
within one process do not show that, so a report keeps medians of several processes for comparisons with other reports.
"""

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any, Literal

from compress import errors
from compress.artifacts.fingerprint import sha256_bytes
from compress.artifacts.manifest import Checkpoint, Engine
from compress.errors import CompressError, ModelError, UnavailableError
from compress.log import progress
from compress.report.document import ColdStart, FreshRow
from compress.stages.contract import INPUT
from compress.stages.variants import Runnable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compress.engines.session import Arrays

PROCESSES = 5
TIMEOUT_S = 600.0
CHILD = (sys.executable, "-P", str(Path(__file__).with_name("fresh_child.py")))
_AT_ONCE = 4  # importing keeps every processor busy, and what has been imported takes little memory
_LAST_LINES = 20

Runtime = Literal["torch", "onnxruntime", "tensorrt", "tensorrt_rtx"]


@dataclass(frozen=True)
class FreshVariant:
    """One variant to load in processes of its own.

    Attributes:
        name: of the variant.
        runtime: what loads it.
        path: the file, or the folder of a checkpoint.
        feeds: batch size -> inputs, one array for each input of the model; ascending.
        first: inputs of the first call: the smallest batch that it takes.
        device: as its session takes it.
        threads: of its session, on a processor.
        optimized: False where ONNX Runtime is to compute node by node.
        base: folder that a user's `module:callable` starts from.
        cuda_graphs: start each batch of an engine as one CUDA graph.
    """

    name: str
    runtime: Runtime
    path: Path
    feeds: "Mapping[int, Arrays]"
    first: "Arrays"
    device: str = "cpu"
    threads: int = 1
    optimized: bool = True
    base: Path = Path()
    cuda_graphs: bool = False


@dataclass(frozen=True)
class FreshSlot:
    """How long one batch size is measured in each process: by count and by time, whichever takes longer."""

    slot_iterations: int = 10
    slot_ms: float = 50.0
    warmup_iterations: int = 5
    warmup_ms: float = 25.0


def fresh_variant(
    runnable: Runnable,
    images: "NDArray[np.float32]",
    batches: Iterable[int],
    *,
    base: Path,
    device: str,
    threads: int,
    cuda_graphs: bool = False,
) -> FreshVariant:
    """Describe an artifact that runs here for `measure_fresh`.

    Args:
        runnable: with a session; that session is not used.
        images: (n, channels, height, width), n >= 1; repeated where a batch is larger.
        batches: samples per call; those outside an engine's profile are left out.
        base: folder that a user's `module:callable` starts from.
        device: of torch sessions.
        threads: CPU threads of every session.
        cuda_graphs: start each batch of an engine as one CUDA graph.
    """
    import numpy as np

    artifact, on, runtime = runnable.artifact, "cpu", "onnxruntime"
    if isinstance(artifact, Checkpoint):
        on, runtime = device, "torch"
    elif isinstance(artifact, Engine):
        on, runtime = "cuda", artifact.manifest.config["backend"]

    def feed(batch: int) -> "Arrays":
        return {INPUT: np.resize(images, (batch, *images.shape[1:]))}

    return FreshVariant(
        name=artifact.step,
        runtime=runtime,
        path=artifact.path if runtime == "torch" else runnable.file,
        feeds={batch: feed(batch) for batch in sorted(batches) if runnable.takes(batch)},
        first=feed(runnable.smallest),
        device=on,
        threads=threads,
        optimized=not runnable.label.endswith("unoptimized"),
        base=base,
        cuda_graphs=cuda_graphs,
    )


def measure_fresh(
    variants: Sequence[FreshVariant],
    *,
    processes: int = PROCESSES,
    slot: FreshSlot | None = None,
    seed: int = 0,
    timeout_s: float = TIMEOUT_S,
    command: Sequence[str] = CHILD,
) -> dict[str, tuple[list[FreshRow], ColdStart]]:
    """Load and time every variant in several processes of its own, in random interleaved order.

    A few processes import their runtime at the same time; then they measure one after the other.

    Args:
        variants: that run on this machine, with different names.
        processes: of each variant, >= 1.
        slot: how long each batch size is measured.
        seed: of the order.
        timeout_s: limit of one process.
        command: the process; see `compress.stages.fresh_child`.

    Returns:
        Variant -> rows in the order of its batch sizes with one median a process, and the cold start.

    Raises:
        CompressError: what a process reported; the variant and its file are named.
        ModelError: a process crashed.
        UnavailableError: a process was killed, or did not finish in time.
        RuntimeError: a process failed in a way that nobody foresaw.
    """
    order = _order(variants, processes, random.Random(seed))
    taken: dict[str, list[dict[str, Any]]] = {variant.name: [] for variant in variants}
    with (
        tempfile.TemporaryDirectory(prefix="compress-fresh-") as folder,
        progress("fresh processes", len(order), "processes") as bar,
    ):
        requests = _write_requests(variants, slot or FreshSlot(), Path(folder))
        for start in range(0, len(order), _AT_ONCE):
            with ExitStack() as stack:
                group = [
                    stack.enter_context(_Process(variant, requests[variant.name], timeout_s, command))
                    for variant in order[start : start + _AT_ONCE]
                ]
                for process in group:
                    process.wait_until_ready()
                for process in group:
                    taken[process.variant.name].append(process.measure())
                    bar.advance()
    return {name: (_rows(answers), _cold_start(answers)) for name, answers in taken.items()}


def _order(variants: Sequence[FreshVariant], processes: int, chance: random.Random) -> list[FreshVariant]:
    if processes < 1 or len({variant.name for variant in variants}) != len(variants):
        raise ValueError(f"expected >= 1 process and different names, got {processes} and {len(variants)} variants")
    order: list[FreshVariant] = []
    for _ in range(processes):
        order += chance.sample(variants, len(variants))
    return order


def _write_requests(variants: Sequence[FreshVariant], slot: FreshSlot, folder: Path) -> dict[str, str]:
    """Store the inputs once for all processes; returns what each variant's processes are asked, as JSON."""
    import numpy as np

    def stored(arrays: "Arrays") -> dict[str, Any]:
        contents = b"".join(array.tobytes() for array in arrays.values())
        shapes = "".join(f"{array.dtype}{array.shape}" for array in arrays.values())
        file = folder / f"{sha256_bytes(shapes.encode() + contents)}.npz"  # variants that share inputs share the file
        if not file.exists():
            np.savez(file, *arrays.values(), allow_pickle=False)  # by position: a name may be any text
        return {"file": str(file), "names": list(arrays)}

    return {
        variant.name: json.dumps(
            {
                "runtime": variant.runtime,
                "path": str(variant.path.absolute()),
                "base": str(variant.base.absolute()),
                "device": variant.device,
                "threads": variant.threads,
                "optimized": variant.optimized,
                "cuda_graphs": variant.cuda_graphs,
                "feeds": {str(batch): stored(feed) for batch, feed in variant.feeds.items()},
                "first": stored(variant.first),
                "slot": asdict(slot),
            }
        )
        for variant in variants
    }


class _Process:
    """One child: imports, waits, measures; gone when its `with` block ends."""

    def __init__(self, variant: FreshVariant, request: str, timeout_s: float, command: Sequence[str]) -> None:
        self.variant = variant
        self._request = request
        self._timeout_s = timeout_s
        self._command = command
        self._too_late = False

    def __enter__(self) -> "_Process":
        paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": os.pathsep.join(paths)}
        # A file, because nobody reads a pipe while the process works, and a full one would stop it.
        self._said = tempfile.TemporaryFile()
        self._child = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=environment,
        )
        self._timer = Timer(self._timeout_s, self._stop)
        self._timer.daemon = True
        self._timer.start()
        self._tell(self._request)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._child.kill()
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout, self._said):
            if stream is not None:
                _close(stream.close)

    def wait_until_ready(self) -> None:
        """Return when its imports are done."""
        self._hear("ready")

    def measure(self) -> dict[str, Any]:
        """Let it load and measure; returns its answer."""
        self._tell("go")
        return self._hear("measured")

    def _stop(self) -> None:
        self._too_late = True
        self._child.kill()

    def _tell(self, line: str) -> None:
        assert self._child.stdin is not None
        _close(lambda: print(line, file=self._child.stdin, flush=True))

    def _hear(self, expected: str) -> Any:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise self._crash(self._child.wait())
        answer = json.loads(line)
        if "failure" in answer:
            failure = answer["failure"]
            kind: type[CompressError] = getattr(errors, failure["error"])
            error = kind(failure["message"], where=failure["where"], hint=failure["hint"])
            named = self.variant.path.name in error.where
            raise error.at(f"{self.variant.name} in a fresh process" + ("" if named else f", {self.variant.path}"))
        return answer[expected]

    def _crash(self, code: int) -> Exception:
        where = f"{self.variant.name} in a fresh process, {self.variant.path}"
        if self._too_late:
            return UnavailableError(
                f"{self.variant.name} was not measured within {self._timeout_s:g} s",
                where=where,
                hint="measure smaller batches, or on a faster machine",
            )
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
        said = "; it had said nothing" if not lines else "; its last lines:\n  " + "\n  ".join(lines)
        if code in (-signal.SIGKILL, -signal.SIGTERM):  # from outside: the kernel out of memory, or somebody
            return UnavailableError(
                f"The process that loaded {self.variant.name} was killed, as happens when memory runs out{said}",
                where=where,
                hint="free some memory, or measure on a larger machine",
            )
        if code < 0:
            return ModelError(f"{self.variant.runtime} crashed ({signal.Signals(-code).name}){said}", where=where)
        return RuntimeError(f"the process that loaded {where} ended with {code}{said}")


def _close(write: Callable[[], object]) -> None:
    """Write or close towards a process that may be gone; what became of it is learnt from its exit code."""
    try:
        write()
    except BrokenPipeError:
        pass


def _rows(answers: Sequence[Mapping[str, Any]]) -> list[FreshRow]:
    return [
        FreshRow(batch=int(batch), medians_ms=[answer["medians_ms"][batch] for answer in answers])
        for batch in answers[0]["medians_ms"]
    ]


def _cold_start(answers: Sequence[Mapping[str, Any]]) -> ColdStart:
    def median(name: str) -> float:
        return statistics.median(answer[name] for answer in answers)

    return ColdStart(
        processes=len(answers),
        load_ms=median("load_ms"),
        first_ms=median("first_ms"),
        base_bytes=int(median("base_bytes")),
        peak_bytes=int(median("peak_bytes")),
    )
