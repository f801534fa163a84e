"""Wrong timers, and a simulated device on which those mistakes can be made without a GPU.

The device does what a GPU does to a timer: calls return at once and the work goes on in a thread; a buffer that was
read is cheap to read again until the cache is overwritten.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue

from ..measure.audit import COST_S, CpuProbe, Probe
from ..measure.contender import Call
from ..measure.timer import CpuTimer, Timer
from ..measure.verified import Verified

WARM_S, COLD_S = 0.002, 0.008


class Device:
    """Runs what is submitted in order, in a thread of its own."""

    def __init__(self) -> None:
        self.warm = False
        self._queue: SimpleQueue[Callable[[], None]] = SimpleQueue()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            self._queue.get()()

    def submit(self, work: Callable[[], None]) -> None:
        """Queue work and return."""
        self._queue.put(work)

    def synchronize(self) -> None:
        """Wait until all that was submitted is done."""
        done = threading.Event()
        self.submit(done.set)
        done.wait()

    def overwrite_cache(self) -> None:
        """What was read before has to be fetched again."""
        self.warm = False

    def read(self) -> None:
        """Reads a buffer: slow where it is not in the cache, after which it is."""

        def work() -> None:
            time.sleep(WARM_S if self.warm else COLD_S)
            self.warm = True

        self.submit(work)


class DeviceProbe:
    """Known costs on the simulated device."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def work(self) -> Call:
        """Returns at once; the device is busy for COST_S."""
        return lambda: self.device.submit(lambda: time.sleep(COST_S))

    def cached(self) -> tuple[Call, float]:
        """Reading the buffer, and the middle between warm and cold."""
        return self.device.read, (WARM_S + COLD_S) / 2


class DeviceTimer:
    """A right timer of the simulated device, as `CudaEventTimer` is of a GPU."""

    method = "simulated-cold"

    def __init__(self, device: Device) -> None:
        self.device = device

    def warm_up(self, subject: Verified) -> None:
        """One call."""
        subject.call()
        self.device.synchronize()

    def calibrate(self, subject: Verified) -> int:
        """One call a sample: a second would find a warm cache."""
        return 1

    def prepare(self) -> None:
        """Overwrite the cache and wait."""
        self.device.overwrite_cache()
        self.device.synchronize()

    def finish(self) -> None:
        """Wait for the work."""
        self.device.synchronize()

    def sample_s(self, subject: Verified, repeats: int) -> float:
        """Seconds from submission to the end of the work."""
        self.prepare()
        start = time.perf_counter()
        subject.call()
        self.finish()
        return time.perf_counter() - start


class NoSynchronisation(DeviceTimer):
    """Stops the clock when the call returns."""

    def finish(self) -> None:
        """Waits for nothing."""

    def prepare(self) -> None:
        """As it should be, so that nothing else is wrong."""
        self.device.synchronize()
        super().prepare()


class WarmCacheClaimedCold(DeviceTimer):
    """Says cold and does not overwrite the cache."""

    def prepare(self) -> None:
        """Waits, and leaves the cache as it is."""
        self.device.synchronize()


class WorkOutsideTheTimedRegion(CpuTimer):
    """Starts the clock when the call is done."""

    def sample_s(self, subject: Verified, repeats: int) -> float:
        """The time of an empty loop."""
        for _ in range(repeats):
            subject.call()
        start = time.perf_counter()
        for _ in range(repeats):
            pass
        return (time.perf_counter() - start) / repeats


class OneCallForMany(CpuTimer):
    """Divides by calls that it did not make: a cached lambda, a loop that the compiler removed."""

    def sample_s(self, subject: Verified, repeats: int) -> float:
        """One call, divided by `repeats`."""
        return super().sample_s(subject, 1) / repeats


class BlockForCall(CpuTimer):
    """Forgets to divide by the number of calls."""

    def sample_s(self, subject: Verified, repeats: int) -> float:
        """The seconds of the whole block."""
        return super().sample_s(subject, repeats) * repeats


@dataclass(frozen=True)
class PlantedTimer:
    """One wrong timer, and the questions of the audit that it must fail: each of them, and no other."""

    name: str
    fails: tuple[str, ...]
    make: Callable[[], tuple[Timer, Probe]]


def _cpu(kind: type[CpuTimer]) -> Callable[[], tuple[Timer, Probe]]:
    return lambda: (kind(), CpuProbe())


def _device(kind: type[DeviceTimer]) -> Callable[[], tuple[Timer, Probe]]:
    def make() -> tuple[Timer, Probe]:
        device = Device()
        return kind(device), DeviceProbe(device)

    return make


WHOLE, EACH, COLD = "timer: whole call", "timer: per call", "timer: cold"

TIMERS = (
    PlantedTimer("work outside the timed region", (WHOLE, EACH), _cpu(WorkOutsideTheTimedRegion)),
    PlantedTimer("no synchronisation", (WHOLE, COLD), _device(NoSynchronisation)),
    PlantedTimer("warm cache claimed cold", (COLD,), _device(WarmCacheClaimedCold)),
    PlantedTimer("one call divided by many", (EACH,), _cpu(OneCallForMany)),
    PlantedTimer("a block for a call", (EACH,), _cpu(BlockForCall)),
)
RIGHT_TIMERS = (_cpu(CpuTimer), _device(DeviceTimer))
"""Must pass."""
