"""A clock for tests: it goes on only when it is told to, or when somebody sleeps by it."""


class FakeClock:
    """Tells the time of the day and passes it, without any passing."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
