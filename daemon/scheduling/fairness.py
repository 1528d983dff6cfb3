"""Weighted fair shares of one device's time among models: start-time fair queueing.

Source: P. Goyal, H. M. Vin, H. Cheng, "Start-time Fair Queueing: A Scheduling Algorithm for Integrated
Services Packet Switching Networks", SIGCOMM 1996.
"""


class ShareClock:
    """The virtual clock of one worker and one priority class.

    A batch of a model gets the start tag S = max(virtual time, the model's last finish tag F), and then
    F = S + device time / weight. The lowest S runs first, and the virtual time is the S of what was released
    last. A model that was idle thus starts at the present: it gets no credit for not having asked. Between any
    two backlogged models the difference of (device time / weight) stays within one batch of each.
    """

    __slots__ = ("_finish_tags", "_virtual_ns")

    def __init__(self) -> None:
        self._virtual_ns = 0.0
        self._finish_tags: dict[int, float] = {}

    def start_tag(self, model: int) -> float:
        """Virtual time at which the model's next batch would start: the lowest goes first."""
        return max(self._virtual_ns, self._finish_tags.get(model, 0.0))

    def charge(self, model: int, device_ns: float, weight: float) -> None:
        """A batch of the model was released and is predicted to take `device_ns`."""
        self._virtual_ns = start = self.start_tag(model)
        self._finish_tags[model] = start + device_ns / weight

    def correct(self, model: int, excess_ns: float, weight: float) -> None:
        """A charged batch took `excess_ns` more than predicted (negative: less)."""
        if model in self._finish_tags:
            self._finish_tags[model] += excess_ns / weight

    def forget(self, model: int) -> None:
        """The model has no replica on this worker any more."""
        self._finish_tags.pop(model, None)
