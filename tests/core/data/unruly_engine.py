"""An in-process engine that uses all freedom of `Engine`: any order of shards, and each shard processed twice."""

import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pixrec_core.engine._contract import R, S


@dataclass
class UnrulyEngine:
    workers: int
    seed: int = 0

    def map_shards(self, function: Callable[[S], R], shards: Sequence[S]) -> Iterator[R]:
        packed = pickle.dumps(function)
        tries = [*range(len(shards))] * 2
        random.Random(self.seed).shuffle(tries)
        results = {number: pickle.loads(packed)(shards[number]) for number in tries}
        return (results[number] for number in range(len(shards)))
