"""GPU readings through NVML. The only file that imports pynvml, and only once somebody asks for a reading.

Utilisation here says "a kernel ran", not "there is no room left": it serves to notice other users of a shared card.
Power, energy, throttling and errors are for metering and health.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from local_llm.datamodels import GpuReading

# What slows a card down. Idle clocks, clock settings and sync boost do not.
_THROTTLE_BITS = (
    (0x04, "sw_power_cap"),
    (0x08, "hw_slowdown"),
    (0x20, "sw_thermal_slowdown"),
    (0x40, "hw_thermal_slowdown"),
    (0x80, "hw_power_brake_slowdown"),
)
# Driver errors after which a card needs a reset or a technician (NVIDIA's XID catalogue); others are the application's.
_FATAL_XIDS = frozenset({48, 62, 64, 74, 79, 95, 119, 120, 140})
NO_DRIVER = "no NVIDIA driver on this machine"
_MAX_EVENTS_PER_READ = 32
_NOT_SUPPORTED = 3
_UNINITIALIZED = 1
_FUNCTION_NOT_FOUND = 13
_GPU_IS_LOST = 15


class Nvml:
    """All GPUs of this machine. `read` never raises; `problem` says why it gives nothing. Not for several threads.

    Without a driver nothing is ever initialised and each read tries again, so a driver that comes later is found, and
    one that was reset is taken up anew.
    """

    def __init__(self) -> None:
        self._library: Any = None
        self._events: Any = None
        self._xids: dict[int, int] = {}
        self.problem: str | None = None
        self.driver_version: str | None = None
        self.cuda_version: str | None = None

    def read(self) -> tuple[GpuReading, ...]:
        """One look at every card, in NVML's order; empty where there is no driver."""
        library = self._open()
        if library is None:
            return ()
        try:
            count = library.nvmlDeviceGetCount()
        except self._errors(library) as error:
            self._lose(library, error)
            return ()
        self._take_events(library)
        return tuple(self._read_one(library, index) for index in range(count))

    def close(self) -> None:
        """Let go of the driver."""
        library, self._library, self._events = self._library, None, None
        if library is not None:
            self._quiet(library, library.nvmlShutdown)

    @staticmethod
    def _errors(library: Any) -> tuple[type[Exception], ...]:
        return (library.NVMLError, library.NVMLLibraryMismatchError)

    def _open(self) -> Any:
        if self._library is not None:
            return self._library
        try:
            import pynvml
        except ImportError:
            self.problem = "nvidia-ml-py is not installed"
            return None
        try:
            pynvml.nvmlInit()
        except self._errors(pynvml) as error:
            self.problem = _cause(error)
            return None
        self._library, self.problem = pynvml, None
        self._xids.clear()  # a driver that begins anew has cards that do
        version = self._quiet(pynvml, pynvml.nvmlSystemGetDriverVersion)
        self.driver_version = version if isinstance(version, str) else None
        cuda = self._quiet(pynvml, pynvml.nvmlSystemGetCudaDriverVersion_v2)
        self.cuda_version = f"{cuda // 1000}.{cuda % 1000 // 10}" if isinstance(cuda, int) and cuda > 0 else None
        self._listen(pynvml)
        return pynvml

    def _lose(self, library: Any, error: Exception) -> None:
        """The driver does not answer any more: start from the beginning with the next read."""
        self.problem = _cause(error)
        self._library, self._events = None, None
        self._quiet(library, library.nvmlShutdown)

    def _quiet(self, library: Any, call: Callable[..., Any], *arguments: Any) -> Any:
        """The value, or `None` where the card, the driver or its version does not tell."""
        try:
            return call(*arguments)
        except self._errors(library):
            return None

    def _listen(self, library: Any) -> None:
        """Ask for critical driver errors (XIDs); not every card or permission allows it."""
        events = self._quiet(library, library.nvmlEventSetCreate)
        if events is None:
            return
        for index in range(self._quiet(library, library.nvmlDeviceGetCount) or 0):
            handle = self._quiet(library, library.nvmlDeviceGetHandleByIndex, index)
            if handle is not None:
                self._quiet(
                    library,
                    library.nvmlDeviceRegisterEvents,
                    handle,
                    library.nvmlEventTypeXidCriticalError,
                    events,
                )
        self._events = events

    def _take_events(self, library: Any) -> None:
        for _ in range(_MAX_EVENTS_PER_READ if self._events is not None else 0):
            event = self._quiet(library, library.nvmlEventSetWait_v2, self._events, 0)
            if event is None:
                return
            index = self._quiet(library, library.nvmlDeviceGetIndex, event.device)
            if index is not None:
                self._xids[int(index)] = int(event.eventData)

    def _read_one(self, library: Any, index: int) -> GpuReading:
        try:
            handle = library.nvmlDeviceGetHandleByIndex(index)
            memory = library.nvmlDeviceGetMemoryInfo(handle)
        except self._errors(library) as error:
            if getattr(error, "value", None) != _NOT_SUPPORTED:
                return GpuReading(index=index, name="?", problem=_cause(error))
            memory = None

        def ask(call: Callable[..., Any], *arguments: Any) -> Any:
            return self._quiet(library, call, handle, *arguments)

        utilization = ask(library.nvmlDeviceGetUtilizationRates)
        milliwatts = ask(library.nvmlDeviceGetPowerUsage)
        millijoules = ask(library.nvmlDeviceGetTotalEnergyConsumption)
        temperature = ask(library.nvmlDeviceGetTemperature, library.NVML_TEMPERATURE_GPU)
        mig = ask(library.nvmlDeviceGetMigMode)
        ecc = ask(
            library.nvmlDeviceGetTotalEccErrors,
            library.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            library.NVML_VOLATILE_ECC,
        )
        xid = self._xids.get(index)
        return GpuReading(
            index=index,
            name=str(ask(library.nvmlDeviceGetName) or "?"),
            memory_total_bytes=int(memory.total) if memory is not None else None,
            memory_used_bytes=int(memory.used) if memory is not None else None,
            utilization_ratio=_ratio(utilization.gpu) if utilization is not None else None,
            temperature_c=int(temperature) if temperature is not None else None,
            power_w=milliwatts / 1000 if milliwatts is not None else None,
            energy_j=millijoules / 1000 if millijoules is not None else None,
            throttle_reasons=_throttles(self._clocks_reasons(library, handle)),
            problem=f"XID {xid}" if xid in _FATAL_XIDS else None,
            mig=bool(mig[0]) if mig is not None else None,
            ecc_uncorrected=int(ecc) if ecc is not None else None,
            xid=xid,
            sm_clock_mhz=_clock(ask(library.nvmlDeviceGetClockInfo, library.NVML_CLOCK_SM)),
            sm_clock_max_mhz=_clock(ask(library.nvmlDeviceGetMaxClockInfo, library.NVML_CLOCK_SM)),
            uuid=ask(library.nvmlDeviceGetUUID),
        )

    def _clocks_reasons(self, library: Any, handle: Any) -> int | None:
        reasons = self._quiet(library, library.nvmlDeviceGetCurrentClocksEventReasons, handle)
        if reasons is None:  # drivers before 535 know the call by its old name only
            reasons = self._quiet(library, library.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
        return int(reasons) if reasons is not None else None


def _throttles(reasons: int | None) -> tuple[str, ...]:
    return tuple(name for bit, name in _THROTTLE_BITS if reasons is not None and reasons & bit)


def _clock(mhz: int | None) -> int | None:
    return int(mhz) if mhz is not None and mhz > 0 else None


def _ratio(percent: int) -> float | None:
    return percent / 100 if 0 <= percent <= 100 else None


def _cause(error: Exception) -> str:
    """A few words for people, from the kind of failure."""
    code = getattr(error, "value", None)
    known = {
        12: NO_DRIVER,
        9: "the NVIDIA driver is not loaded",
        4: "no permission to ask the NVIDIA driver",
        18: "the NVIDIA driver and its library differ in version: reboot or reload the driver",
        _GPU_IS_LOST: "the GPU has fallen off the bus",
        _FUNCTION_NOT_FOUND: "the NVIDIA driver is too old",
        _UNINITIALIZED: "the NVIDIA driver has been reset",
    }
    if code in known:
        return known[code]
    return f"NVML: {error}" if str(error) else f"NVML: {type(error).__name__}"
