"""When to ping an upstream, and when its silence means death. Pure: time comes in.

In tunnel mode a dead node shows by nothing else: the API server keeps its side open. But silence has innocent causes as
well: we stopped reading, or the pod does not take what we upload, and the runtime's read loop, which answers pings, is
stuck behind it. Only silence with neither of them is death, and with an upload a much longer one: from here a node that
died under it looks the same.
"""

from __future__ import annotations

from typing import Literal

PING_INTERVAL_S = 5.0
WAITING_PING_S = 2.0  # where somebody waits for an answer: a dead upstream is avoided the sooner
DEATH_S = 8.5  # looked at once a second: found within 10 s, also where a busy machine looks late
UPLOAD_DEATH_S = 120.0  # a pod may be busy for so long with what it has, and read no more of it
STALL_S = 1.0  # a ping unanswered for so long: not dead yet, but no place for a new stream
PROOF_S = 1.0  # a runtime has replied to a new stream, or to a ping, by then
FAR_TIMES = 2  # one behind a slow link has, after so many times what it took to open the upstream
LONGEST_PROOF_S = 6.0  # in any case less than DEATH_S


class Liveness:
    """The silence of one upstream.

    Args:
        now: seconds of a monotonic clock, here and everywhere.
        answers: whether a peer of this protocol answers pings for sure. Where it does not, silence is no sign.
    """

    def __init__(
        self, now: float, *, answers: bool = True, ping_interval_s: float = PING_INTERVAL_S, death_s: float = DEATH_S
    ) -> None:
        self._ping_interval_s = ping_interval_s
        self._death_s = death_s
        self.answers = answers
        self.proof_s, self._stall_s = PROOF_S, STALL_S
        self.heard_at = now
        self._looked_at = now
        self.asked_at: float | None = None
        self._pinged_at: float | None = None

    def is_far(self, round_trip_s: float) -> None:
        """An exchange with the peer takes so long: its answers are waited for accordingly."""
        self.proof_s = max(PROOF_S, min(FAR_TIMES * round_trip_s, LONGEST_PROOF_S))
        self._stall_s = max(STALL_S, self.proof_s)

    def heard(self, now: float) -> None:
        """Bytes came, of any kind."""
        self.heard_at = now
        self._pinged_at = None
        self.asked_at = None

    def ask(self, now: float) -> None:
        """What every live peer answers at once leaves now: a new stream, a ping."""
        if self.asked_at is None and self.answers:
            self.asked_at = now

    def unanswered(self, now: float) -> bool:
        """It was asked, and has not answered as fast as a live peer does."""
        return self.asked_at is not None and now - self.asked_at >= self.proof_s

    def doubt(self, now: float) -> None:
        """The peer is asked whether it is there, and is stalled until it answers."""
        self.heard_at = now
        self._pinged_at = now - self._stall_s
        self.ask(now)

    def stalled(self, now: float) -> bool:
        """It was asked or pinged, and has not answered as fast as a live peer does."""
        pinged = self.answers and self._pinged_at is not None and now - self._pinged_at >= self._stall_s
        return pinged or self.unanswered(now)

    def look(
        self, now: float, *, reading: bool, uploading: bool, waiting: bool = False
    ) -> Literal["ping", "dead"] | None:
        """Call it about once a second.

        Args:
            reading: we take what the peer sends.
            uploading: more bytes are under way than a pod that does not read could leave unnoticed.
            waiting: something was sent that is not answered yet.
        """
        gap, self._looked_at = now - self._looked_at, now
        asleep = gap >= self._ping_interval_s  # the machine was suspended: who knows what is left of the connection
        if not reading or asleep:  # our own silence
            self.heard_at = now
            self._pinged_at = self.asked_at = None
        if reading and asleep:
            self._pinged_at = now
            return "ping"
        silence = now - self.heard_at
        death_s = UPLOAD_DEATH_S if uploading else self._death_s
        if silence >= death_s and self._pinged_at is not None and self.answers:
            return "dead"
        if silence >= (WAITING_PING_S if waiting else self._ping_interval_s) and self._pinged_at is None:
            self._pinged_at = now
            return "ping"
        return None
