"""The ballast: a process per GPU that holds so much memory that only a budget is left free.

    python -m crewbench.devices.ballast     (started by `Ballast`, which tells it what to do)

A big card then behaves as a smaller one, and an out-of-memory is CUDA's own. It uses the CUDA driver
through ctypes: torch would take ten seconds to import.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from crewbench.devices.companion import Companion, CompanionError, Post
from crewbench.devices.cuda import PAGE, Cuda
from crewbench.devices.inventory import Device, DeviceError, TooLittleMemory

MIB = 2**20
START_S = 60.0


class Ballast:
    """The trial's side of one GPU's ballast. After `start`, `mib` is what it takes of the card, its CUDA
    context included, and `free_mib` what it left. It holds `lease_fds` (Lease.fds) as long as it lives: a
    trial that is killed is gone before its ballast, and the card is nobody else's until that is, too."""

    def __init__(self, device: Device, budget_mib: float, lease_fds: Sequence[int] = ()) -> None:
        if device.kind != "gpu":
            raise DeviceError(f"{device.uuid} is a CPU slot: its budget is simulated, it needs no ballast")
        self.device = device
        self.mib = self.free_mib = 0.0
        self._companion = Companion(
            "crewbench.devices.ballast",
            {"uuid": device.uuid, "budget_mib": budget_mib},
            {"CUDA_VISIBLE_DEVICES": device.uuid, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
            lease_fds,
        )

    @property
    def pid(self) -> int | None:
        return self._companion.pid

    @property
    def alive(self) -> bool:
        """Whether the memory is still held."""
        return self._companion.alive

    def start(self) -> None:
        """Returns at once, so that several cards fill side by side; `ready` waits."""
        self._companion.start()

    def ready(self) -> None:
        """TooLittleMemory if less than the budget is free, DeviceError if the card cannot be used."""
        try:
            said = self._companion.ready(START_S)
        except CompanionError as error:
            raise DeviceError(f"no ballast on {self.device.uuid}: {error}") from None
        if "too_little_mib" in said:
            self._companion.kill()
            raise TooLittleMemory(
                f"only {said['too_little_mib']:.0f} MiB of {self.device.uuid} are free, less than the "
                "budget: somebody else uses it; wait, choose another GPU, or lower the budget"
            )
        self.mib, self.free_mib = said["ballast_mib"], said["free_mib"]

    def stop(self) -> None:
        self._companion.kill()


@contextmanager
def ballasts(
    devices: Sequence[Device], budget_mib: float, lease_fds: Sequence[int] = ()
) -> Iterator[dict[str, Ballast]]:
    """Hold ballast on all devices, by UUID, until the end of the block."""
    held = {device.uuid: Ballast(device, budget_mib, lease_fds) for device in devices}
    with ExitStack() as started:
        for ballast in held.values():
            ballast.start()
            started.callback(ballast.stop)
        for ballast in held.values():
            ballast.ready()
        yield held


def fill(cuda: Cuda, budget: int) -> None:
    """Take memory until at most `budget` bytes and one page are free, in as few pieces as can be had."""
    piece = None
    while True:
        spare = (cuda.free() - budget) // PAGE * PAGE
        piece = spare if piece is None else min(piece, spare)
        if piece < PAGE:
            return
        if cuda.take(piece) is None:
            piece = piece // 2 // PAGE * PAGE


def main() -> None:
    post = Post()
    uuid, budget = post.spec["uuid"], int(post.spec["budget_mib"] * MIB)
    try:
        from crewbench.devices import nvml

        before_mib = nvml.free_mib([uuid])[uuid]
        cuda = Cuda()
        if not uuid.endswith(cuda.uuid):
            post.say({"error": f"CUDA shows device {cuda.uuid}, wanted {uuid}"})
            return
        if cuda.free() < budget:
            post.say({"too_little_mib": cuda.free() / MIB})
            return
        fill(cuda, budget)
        # By NVML, as the sampler counts: the context is ballast too.
        post.say({"ballast_mib": before_mib - nvml.free_mib([uuid])[uuid], "free_mib": cuda.free() / MIB})
    except Exception as error:
        post.say({"error": f"{type(error).__name__}: {error}"})
        return
    post.wait()


if __name__ == "__main__":
    main()
