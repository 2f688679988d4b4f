"""Agreement: whether a peer serves the same model, before it is compared."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pipelines
from benchmarks.peers.peer import Peer, PeerError, Top

N_COMPARED = 4


class Agreement:
    """What the artifact's own pipeline answers to texts of the load; loaded once for all peers.

    Texts whose two best labels are nearly as likely are left out: their order says nothing.
    """

    def __init__(self, artifact: Path, texts: Sequence[str], least_margin: float) -> None:
        """`least_margin` is by how much the best label has to lead the second one."""
        classify = pipelines.load(artifact)
        self._expected: dict[str, Top] = {}
        for text in dict.fromkeys(texts):
            best, second, *_ = classify(text, top_k=None)
            if best["score"] - second["score"] > least_margin:
                self._expected[text] = (best["label"], best["score"])
            if len(self._expected) == N_COMPARED:
                break

    def check(self, peer: Peer, ask: Callable[[str], Top]) -> None:
        """Ask for each text alone; raises PeerError where a label or a score is not the artifact's."""
        if not self._expected:
            raise PeerError("the artifact is sure of no text of the load: nothing to compare it by")
        for text, (label, score) in self._expected.items():
            got_label, got_score = ask(text)
            if got_label != label or abs(got_score - score) > peer.score_tolerance:
                raise PeerError(
                    f"not the same model: {got_label} {got_score:.4f} where the artifact answers {label} {score:.4f}"
                )
