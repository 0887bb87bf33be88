"""The time budget of a config, and the FLOPs that its machine does in that time."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Budget:
    """Time on a machine, for which a config's sizes are chosen.

    Attributes:
        seconds: Time of the whole run.
        peak_flops: FLOPs per second that the machine can do at most.
        utilization: Assumed share of them that go into the model (MFU).
    """

    seconds: float
    peak_flops: float
    utilization: float

    @property
    def flops(self) -> float:
        """FLOPs of the model in the time of the budget.

        Example:
            >>> Budget(seconds=10, peak_flops=1e9, utilization=0.2).flops
            2000000000.0
        """
        return self.seconds * self.peak_flops * self.utilization
