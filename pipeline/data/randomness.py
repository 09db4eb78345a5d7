"""Random choices that depend on a named key alone, not on what was drawn before."""

import hashlib
import json

import numpy as np


def generator(*key: str | int) -> np.random.Generator:
    """A generator of its own for each key; the same key gives the same stream in every process."""
    return np.random.default_rng(int(stable_hash(*key), 16))


def stable_hash(*key: str | int) -> str:
    """SHA-256 of the key, as hex digits; unlike `hash`, the same in every process."""
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()
