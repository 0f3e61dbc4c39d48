"""One seed, many independent streams: every random draw of a simulation takes its own named child generator."""

from __future__ import annotations

import hashlib

import torch

from atomdiffuser.errors import SettingsError


class RandomStreams:
    """Named child generators of one root.

    A name can be taken once: asking twice would hand the same numbers to two draws, so it raises.

    Parameters
    ----------
    seed
        An integer; or a generator, from which one number is drawn so that the next call gets other streams.
    device
        Where the generators draw, unless a call says otherwise.
    """

    def __init__(self, seed: int | torch.Generator, device: torch.device | str = "cpu") -> None:
        if isinstance(seed, torch.Generator):
            seed = int(torch.randint(2**62, (), generator=seed, device=seed.device))
        self._root = int(seed)
        self._taken: set[str] = set()
        self.device = torch.device(device)

    def generator(self, name: str, device: torch.device | str | None = None) -> torch.Generator:
        """The generator called `name`, seeded by the root and the name alone."""
        return torch.Generator(device=device or self.device).manual_seed(self._take(name))

    def child(self, name: str) -> RandomStreams:
        """Streams of their own below `name`."""
        return RandomStreams(self._take(name), self.device)

    def _take(self, name: str) -> int:
        if name in self._taken:
            raise SettingsError(f"the random stream {name!r} is already in use; give each draw a name of its own")
        self._taken.add(name)
        digest = hashlib.blake2b(f"{self._root}/{name}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1  # torch seeds are signed 64 bit


class Draws:
    """Uniform and normal draws for a batch of n, each from its own stream, on the CPU in float64.

    Parameters are drawn on the CPU wherever the rendering runs: the same seed then gives the same specimen everywhere.
    """

    def __init__(self, n: int, streams: RandomStreams) -> None:
        self.n, self.streams = n, streams

    def uniform(self, name: str, low: float = 0.0, high: float = 1.0, *shape: int) -> torch.Tensor:
        """(n, *shape), uniform in [low, high)."""
        generator = self.streams.generator(name, "cpu")
        return low + (high - low) * torch.rand(self.n, *shape, generator=generator, dtype=torch.float64)

    def log_uniform(self, name: str, low: float, high: float, *shape: int) -> torch.Tensor:
        """(n, *shape), uniform in the logarithm between two positive bounds."""
        return low * (high / low) ** self.uniform(name, 0.0, 1.0, *shape)

    def normal(self, name: str, sigma: float = 1.0, *shape: int) -> torch.Tensor:
        """(n, *shape), Gaussian around zero."""
        generator = self.streams.generator(name, "cpu")
        return sigma * torch.randn(self.n, *shape, generator=generator, dtype=torch.float64)

    def chance(self, name: str, probability: float) -> torch.Tensor:
        """(n,) bool, true with `probability`."""
        return self.uniform(name) < probability

    def integers(self, name: str, high: int, *shape: int) -> torch.Tensor:
        """(n, *shape) int64 in 0 … high − 1."""
        return torch.randint(high, (self.n, *shape), generator=self.streams.generator(name, "cpu"))

    def directions(self, name: str, *shape: int) -> torch.Tensor:
        """(n, *shape, 2) unit vectors."""
        angle = self.uniform(name, 0.0, 2 * torch.pi, *shape)
        return torch.stack([angle.sin(), angle.cos()], dim=-1)
