"""Agreement: checks that a peer serves the same model before it is measured."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pipelines
from benchmarks.peers.peer import Peer, PeerError, Top
from pipelines.runtime.providers import Device

N_CONSIDERED = 32  # of the load's texts
N_COMPARED = 4
FP32_EPSILON = 2.0**-24  # how near to 1 a score can be


class Agreement:
    """The answers of the artifact's own pipeline to texts of the load.

    Scores are compared as log-odds, which differ also where all scores round to 1.000: a service that does not read
    the text must not pass. The texts compared are those with the lowest and the highest log-odds.
    """

    def __init__(self, artifact: Path, texts: Sequence[str], device: Device = "cpu") -> None:
        classify = pipelines.load(artifact, device=device)
        tops = {text: (one["label"], one["score"]) for text in texts[:N_CONSIDERED] for one in classify(text)}
        ordered = sorted(tops, key=lambda text: log_odds(tops[text][1]))
        half = N_COMPARED // 2
        self._expected: dict[str, Top] = {text: tops[text] for text in (*ordered[:half], *ordered[-half:])}

    def check(self, peer: Peer, ask: Callable[[str], Top]) -> None:
        """Send each text alone; raises PeerError where a label or a score is not the artifact's."""
        for text, (label, score) in self._expected.items():
            got_label, got_score = ask(text)
            if got_label != label or abs(log_odds(got_score) - log_odds(score)) > peer.log_odds_tolerance:
                raise PeerError(
                    f"not the same model: {got_label} {got_score:.7f} where the artifact answers {label} {score:.7f}"
                )


def log_odds(score: float) -> float:
    """log(p / (1 - p)), finite for any score of 32 bits."""
    bounded = min(max(score, FP32_EPSILON), 1 - FP32_EPSILON)
    return math.log(bounded / (1 - bounded))
