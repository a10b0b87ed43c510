"""Which worker has the fewest calls, in constant time however many workers there are.

Pure.
"""


class LeastLoaded:
    """Workers in buckets by the number of calls they hold; full ones are in no bucket."""

    def __init__(self) -> None:
        self._load: dict[str, int] = {}
        self._capacity: dict[str, int] = {}
        self._buckets: list[dict[str, None]] = [{}]
        self._lowest = 0

    def __len__(self) -> int:
        return len(self._load)

    def add(self, worker: str, capacity: int) -> None:
        """Add a worker that holds nothing yet."""
        self._load[worker] = 0
        self._capacity[worker] = capacity
        self._put(worker)

    def remove(self, worker: str) -> None:
        """Take a worker out, if it is in."""
        load = self._load.pop(worker, None)
        if load is not None:
            self._buckets[load].pop(worker, None)
            del self._capacity[worker]

    def shift(self, worker: str, by: int) -> None:
        """Count `by` more calls on this worker; nothing if it was taken out."""
        load = self._load.get(worker)
        if load is None:
            return
        self._buckets[load].pop(worker, None)
        self._load[worker] = load + by
        self._put(worker)

    def has_room(self, worker: str) -> bool:
        """Tell whether a worker is in and not full."""
        return worker in self._load and self._load[worker] < self._capacity[worker]

    def pick(self) -> str | None:
        """Return a worker that has room and the fewest calls; the longest untouched of equals."""
        while self._lowest < len(self._buckets):
            bucket = self._buckets[self._lowest]
            if bucket:
                return next(iter(bucket))
            self._lowest += 1
        self._lowest = len(self._buckets)
        return None

    def _put(self, worker: str) -> None:
        load = self._load[worker]
        while len(self._buckets) <= load:
            self._buckets.append({})
        if load < self._capacity[worker]:
            self._buckets[load][worker] = None
            self._lowest = min(self._lowest, load)
