"""Training of the second look at intensity, on cells of pairs that the rest of the network has seen to.

The rest stays as it is, so what it says of a pair is computed once, and cells are drawn from it again and again.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from atomdiffuser.model.decay_decoder import bounded_log_sigma
from atomdiffuser.model.frames import pair_frames
from atomdiffuser.model.losses import map_loss
from atomdiffuser.model.network import AtomDiffuser
from atomdiffuser.model.second_look import SecondLook
from atomdiffuser.training.batches import BatchSource
from atomdiffuser.training.settings import TrainSettings
from atomdiffuser.training.stepping import clip_gradients, decaying, learning_rate

SEED = 271828  # apart from the seed of the training before
CELLS = 160  # of each pair: neighbours say the same
PAIRS_A_STEP = 48
KEPT_FOR_JUDGING = 8  # one pair in so many
LEARNING_RATE, LOWEST_SHARE, WEIGHT_DECAY = 2e-3, 0.01, 0.05


@dataclass(frozen=True)
class Cells:
    """Cells of n pairs: what the second look decides `by` (n, INPUTS, CELLS, 1) and `between` (n, CHOICES, CELLS, 1),
    the net's `log_sigma`, the `truth` and what it counts, `weight` (n, CELLS, 1), and `tau` (n, 1, 1).
    """

    by: Tensor
    between: Tensor
    log_sigma: Tensor
    truth: Tensor
    weight: Tensor
    tau: Tensor

    def select(self, index: Tensor | slice) -> Cells:
        """Some of the pairs."""
        return Cells(*(getattr(self, f.name)[index] for f in fields(self)))

    def loss(self, look: SecondLook) -> Tensor:
        """Negative log-likelihood of the intensity as the second look has it."""
        rate, change = look.choose(self.by, self.between)
        log_sigma = bounded_log_sigma(self.log_sigma + change) + self.tau.log()
        return map_loss((self.tau * rate).exp(), log_sigma, self.truth, self.weight, beta=0.0)


def train_second_look(model: AtomDiffuser, settings: TrainSettings, device: torch.device) -> float:
    """Train it in place, from fresh weights; how far it brought the loss of pairs kept for judging down.

    Where it did not, intensity stays as the net blends it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        look = SecondLook().to(device)
    cells = gather_cells(model, settings, device)
    kept = -(-len(cells.tau) // KEPT_FOR_JUDGING)
    judged, shown = cells.select(slice(0, kept)), cells.select(slice(kept, None))
    optimizer = torch.optim.AdamW(decaying(look, WEIGHT_DECAY), lr=LEARNING_RATE)
    schedule = replace(settings, learning_rate=LEARNING_RATE, lowest_rate_share=LOWEST_SHARE, warm_up=0)
    generator = torch.Generator().manual_seed(SEED + settings.seed)
    for step in range(settings.look_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings.look_steps, schedule)
        drawn = torch.randint(0, len(shown.tau), (PAIRS_A_STEP,), generator=generator)
        loss = shown.select(drawn.to(device)).loss(look)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip_gradients(list(look.parameters()), settings.clip)
        optimizer.step()
    with torch.no_grad():
        blend = _as_it_is(device)
        gained = float(judged.loss(blend) - judged.loss(look))
    model.decoder.second_look.load_state_dict((look if gained > 0 else blend).state_dict())
    return gained


@torch.no_grad()
def gather_cells(model: AtomDiffuser, settings: TrainSettings, device: torch.device) -> Cells:
    """Cells of `look_pairs` pairs, simulated as for training."""
    batch = min(settings.batch, settings.look_pairs)
    source = BatchSource(replace(settings, seed=SEED + settings.seed, batch=batch, chunk=1, repeats=2), device)
    generator = torch.Generator().manual_seed(SEED + settings.seed)
    found: list[Cells] = []
    for step in range(-(-settings.look_pairs // batch)):
        pairs = source.at(step)
        frames = pair_frames(pairs.reference, pairs.moving)
        evidence = model.evidence(frames, pairs.moving_from_reference @ pairs.small_motion)
        blend, _, log_sigma = model.decoder.first_look(evidence, model.decoder.conditioning(frames.level, pairs.tau))
        by, between = SecondLook.question(blend, evidence)
        n, height, width = pairs.maps.shape[0], *pairs.maps.shape[-2:]
        place = torch.randint(0, height * width, (n, CELLS), generator=generator).to(device)

        def at(images: Tensor, place: Tensor = place, size: tuple[int, int] = (height, width)) -> Tensor:
            inside = images[..., : size[0], : size[1]].flatten(2)
            return inside.gather(2, place[:, None].expand(-1, images.shape[1], -1))[..., None]

        alone = lambda images: at(images)[:, 0]
        found.append(
            Cells(at(by), at(between), alone(log_sigma[:, :1]), alone(pairs.maps[:, :1]), alone(pairs.weight[:, :1]),
                  pairs.tau[:, None, None])
        )  # fmt: skip
    return Cells(*(torch.cat([getattr(c, f.name) for c in found]) for f in fields(Cells)))


def _as_it_is(device: torch.device) -> SecondLook:
    """One that takes the blend, whatever it sees."""
    look = SecondLook().to(device)
    for parameter in look.parameters():
        parameter.zero_()
    look.net[-1].bias[-2] = 100.0  # the blend; the last number is the change of log σ
    return look
