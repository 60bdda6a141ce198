"""A version on trial, loaded: which requests are its own, and what both versions do with theirs."""

from __future__ import annotations

import hashlib
import logging
import math
import random
import struct

from everloop_inference.domain import ServedModel, Strategy, Trial
from everloop_inference.models.arms import Arm

__all__ = ["OnTrial"]

log = logging.getLogger(__name__)


class OnTrial:
    """A candidate beside the version that serves.

    Attributes:
        trial: what the registry says about it.
        baseline: the version that serves.
        candidate: the version on trial.
        baseline_arm: what the former has done since the trial began here.
        candidate_arm: what the latter has done.
        same_inputs: whether both take the same blocks.
    """

    __slots__ = (
        "_seed",
        "_share",
        "_told",
        "baseline",
        "baseline_arm",
        "candidate",
        "candidate_arm",
        "same_inputs",
        "trial",
    )

    def __init__(self, trial: Trial, baseline: ServedModel, candidate: ServedModel) -> None:
        """Takes both versions; nothing has happened yet."""
        self.trial = trial
        self.baseline = baseline
        self.candidate = candidate
        self.baseline_arm = Arm()
        self.candidate_arm = Arm()
        self.same_inputs = baseline.inputs == candidate.inputs
        self._told = False
        self._seed = hashlib.blake2b(trial.rollout.encode() + b"\0", digest_size=8)
        self._share = round(trial.percent / 100 * 2**64)

    @property
    def shadow(self) -> bool:
        """Whether the candidate answers nobody."""
        return self.trial.strategy is Strategy.SHADOW

    @property
    def key(self) -> str:
        """Field whose value decides who gets a request."""
        return self.trial.key or self.baseline.policy.id_field

    def takes(self, value: object) -> bool:
        """Whether the candidate gets a request.

        Equal values always give the same answer, in every replica and through every door; what is absent, null, or no
        text or number is given by chance. The hash is seeded by the rollout: who meets one candidate is not more or
        less likely to meet the next.
        """
        text = _text(value)
        if not text:
            return random.getrandbits(64) < self._share
        digest = self._seed.copy()
        digest.update(text.encode("utf-8", "surrogatepass"))
        return int.from_bytes(digest.digest(), "big") < self._share

    def arm(self, model: ServedModel) -> Arm:
        """Where one of the two is counted."""
        return self.candidate_arm if model is self.candidate else self.baseline_arm

    def failed(self, model: ServedModel, error: Exception) -> None:
        """Counts a request that a version failed, and why."""
        self.arm(model).failed()
        if model is self.candidate and not self._told:
            self._told = True
            log.error(
                "%s version %d, on trial, failed a request, version %d answers it; what follows is only counted: %s",
                model.name,
                model.version,
                self.baseline.version,
                error,
                exc_info=error,
            )


def _text(value: object) -> str:
    """One text for a value, however a door spells it: 5, 5.0 and true (1) of JSON, Struct and tensors."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return str(int(value))
    if not isinstance(value, float) or not math.isfinite(value):
        return ""
    if value.is_integer():
        return str(int(value))
    # A fraction may have come as FP32.
    return repr(struct.unpack("f", struct.pack("f", value))[0])
