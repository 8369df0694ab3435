"""What the losses say: shares gained, excesses removed, pairs until a switch is overcome."""

from dataclasses import dataclass

from probe.few_shot import losses, procedure
from probe.few_shot.losses import LossByPair
from probe.few_shot.procedure import ARMS, Measurement
from probe.statistics import Interval

SMALL_EXCESS = 0.1  # of the loss of predicting nothing


@dataclass(frozen=True)
class Reading:
    """Numbers with intervals, all paired by sequence.

    Attributes:
        measured: The losses.
    """

    measured: Measurement

    @property
    def early(self) -> slice:
        """Fewer pairs than half the channels."""
        return slice(0, max(1, self.measured.task.width // 2))

    @property
    def late(self) -> slice:
        """The last third of the pairs."""
        return slice(self.measured.task.pairs * 2 // 3, None)

    @property
    def best(self) -> str:
        """The layout of the model with the lowest loss on sequences that are not tested on."""
        return self.measured.subject.best

    @property
    def _alone(self) -> LossByPair:
        return self.measured.single[procedure.LEAST_SQUARES]

    def loss(self, learner: str) -> Interval:
        """Mean loss of a learner on one task after many pairs."""
        return losses.mean_over(self.measured.single[learner], self.late)

    def excess(self, learner: str) -> Interval:
        """The same minus that of least squares."""
        return losses.excess(self.measured.single[learner], self._alone, self.late)

    def gain(self, learner: str) -> Interval:
        """Share of what least squares gains over predicting nothing, after many pairs."""
        return self._gain(self.measured.single[learner])

    def gain_of_twin(self, arm: str) -> Interval:
        """The same of the twin, with its own tokens."""
        return self._gain(self.measured.control[arm])

    @property
    def most_of_twin(self) -> Interval:
        """The largest gain of the twin in any layout."""
        return max((self.gain_of_twin(arm) for arm in ARMS), key=lambda gain: gain.hi)

    def removed(self, arm: str) -> Interval:
        """Share of the bare excess over least squares that the tokens of an arm remove."""
        single = self.measured.single
        bare = single[procedure.BARE]
        return losses.share_removed(single[arm], bare, self._alone, self.late)

    @property
    def falls(self) -> Interval:
        """Loss after many pairs over the loss after few, of the best layout."""
        one = self.measured.single[self.best]
        return losses.late_over_early(one, self.early, self.late)

    def recovery(self, learner: str) -> Interval:
        """Pairs after the switch until the excess over a reset stays small."""
        switch = self.measured.switch
        best, none = switch[procedure.LEAST_SQUARES], switch[procedure.NOTHING]
        after = self.measured.after
        return losses.pairs_to_recover(switch[learner], best, none, after, SMALL_EXCESS)

    def _gain(self, one: LossByPair) -> Interval:
        none = self.measured.single[procedure.NOTHING]
        return losses.share_gained(one, self._alone, none, self.late)
