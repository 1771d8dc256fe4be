"""The members of the ensemble in turn, each on the images that still stand."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from evasion.components.auto_attack import apgd
from evasion.components.auto_attack.batches import Batches
from evasion.components.auto_attack.budgets import APGD_CE, APGD_T, MEMBERS, SQUARE, Budget
from evasion.components.auto_attack.compiled import Rows, Runs
from evasion.components.auto_attack.objective import OWN_PREDICTION, Objective
from evasion.components.auto_attack.square import square
from evasion.components.common.attacks.runner import SMALL_BATCH_BYTES, Generated
from evasion.components.common.data.pixels import ROUNDING_ERROR, Floats, Pixels, to_float

_MEMORY = 0.1  # share of the steps whose gradients count in a sum


class Ensemble:
    """The attack on a target.

    Images are taken in groups of several batches, if they are small, so that those that still stand fill batches.

    Args:
        target: The `Classifier` to attack.
        members: Some of `budgets.MEMBERS`, in their order.
        budget: How much each of them does.
        norm: inf or 2.
        eps: Size of the attack in its norm, for pixels in [0, 1].
        batch_size: Images in a pass through the target.
        seed: Seed of all draws.

    Attributes:
        capacity: Images in a group.
    """

    def __init__(
        self,
        target: Any,
        *,
        members: tuple[str, ...],
        budget: Budget,
        norm: str,
        eps: float,
        batch_size: int,
        seed: int,
    ) -> None:
        pixels = math.prod(target.model.input_shape[1:])
        self.capacity = max(SMALL_BATCH_BYTES // (pixels * batch_size), 1) * batch_size
        self._target, self._members, self._budget, self._norm, self._seed = target, members, budget, norm, seed
        # A change of less than an 8-bit step cannot be saved.
        self._eps = float(np.floor(eps * 255 + ROUNDING_ERROR)) / 255 if norm == "inf" else eps
        # Behind a random defense steps, the choice of a point and the last word on it have draws of their own.
        self._chooser = target.redrawn()
        self._judge = self._chooser.redrawn()
        # The paper has the last gradient alone. Behind a defense it differs much from one step to the next: behind JPEG
        # it is that of another image, behind noise that of other draws. A sum with decaying weights (Dong et al. 2018,
        # arXiv:1710.06081, section 3.2) points where most of them do. Where nothing is random, neither fools all images
        # that the other does.
        summed = 1 - 1 / max(_MEMORY * budget.max_iter, 1.0)
        self._decays: dict[str, tuple[float, ...]] = dict.fromkeys(MEMBERS, (0.0,))
        if target.random:
            self._decays |= {APGD_CE: (summed,), APGD_T: (summed,)}
        elif target.straight_through:
            self._decays[APGD_T] = (0.0, summed)
        self._batches = Batches(batch_size, full=self.capacity > batch_size)
        self._objective = Objective(target)
        self._runs = Runs(
            target,
            self._objective,
            norm=norm,
            eps=self._eps,
            capacity=max(self.capacity, budget.n_target_classes),
            batches=self._batches,
        )

    def generate(self, pixels: Pixels) -> Generated:
        """Attack a group of images, which are uint8."""
        group = self._group(pixels)
        if self._objective.classes > 1:
            for number, member in enumerate(MEMBERS):
                for run in range(self._budget.num_random_init if member in self._members else 0):
                    self._attack(group, member, number, run)
        return Generated(group.outputs, group.attacked, group.without_gradient, group.columns())

    def _group(self, pixels: Pixels) -> "_Group":
        """Return a group before the attack."""
        labels = np.full(len(pixels), OWN_PREDICTION, np.int32)
        if self._target.random:  # the prediction is that of the mean over draws, not that of each
            labels = self._outputs(self._target, pixels).argmax(axis=1).astype(np.int32)
        outputs, losses, without_gradient = self._runs.evaluate(pixels, labels)
        if not self._target.random:
            labels = outputs.argmax(axis=1).astype(np.int32)
        return _Group(pixels, outputs, labels, self._margins(outputs, labels), losses, without_gradient)

    def _attack(self, group: "_Group", member: str, *stream: int) -> None:
        """Let one member run on the images whose attack has not ended, once for each of its decays."""
        for decay in self._decays[member]:
            images = group.attackable
            if not len(images):
                break
            if member == SQUARE:
                self._square(group, images, stream)
            elif member == APGD_CE:
                aims = group.labels[images, None]
                group.note(images, self._apgd(group, images, aims, stream, decay))
            else:
                self._aimed(group, images, stream, decay)
            self._settle(group, images, member)

    def _aimed(self, group: "_Group", images: Rows, stream: tuple[int, ...], decay: float) -> None:
        aims = self._objective.likely(group.outputs[images], group.labels[images], self._budget.n_target_classes)
        # All aims at once, so that few images fill batches; the state has room for so many images.
        room = max(self.capacity // aims.shape[1], 1)
        for start in range(0, len(images), room):
            part = slice(start, start + room)
            self._apgd(group, images[part], aims[part], stream, decay)

    def _apgd(self, group: "_Group", images: Rows, aims: Rows, stream: tuple[int, ...], decay: float) -> apgd.Outcome:
        pixels = group.pixels[images]
        starts = apgd.starting_points(self._seed, pixels, aims.shape[1], *stream, norm=self._norm, eps=self._eps)
        outcome = apgd.run(
            self._runs,
            pixels,
            group.labels[images],
            aims,
            starts,
            group.losses[images],
            max_iter=self._budget.max_iter,
            decay=decay,
        )
        # Where nothing is random, no point is farther behind the boundary than the one that a run has kept.
        points = [outcome.pixels, outcome.ends] if self._target.random else [outcome.pixels]
        self._keep(group, images, np.concatenate(points, axis=1), outcome.margins)
        return outcome

    def _keep(self, group: "_Group", images: Rows, points: Pixels, margins: Floats) -> None:
        """Keep the best point of each image, if it is better than that of before.

        Behind a random defense other draws decide: each margin is the luckiest of many.

        Args:
            group: The group.
            images: The numbers of the images.
            points: Shape (images, points, height, width, channels).
            margins: Of the points, shape (images, points); not used if the target is random.
        """
        if self._target.random:
            count, each = points.shape[:2]
            outputs = self._outputs(self._chooser, points.reshape(-1, *points.shape[2:]))
            margins = self._margins(outputs, np.repeat(group.labels[images], each)).reshape(count, each)
        best = np.arange(len(images)), margins.argmax(axis=1)
        group.keep(images, points[best], margins[best])

    def _square(self, group: "_Group", images: Rows, stream: tuple[int, ...]) -> None:
        def judge(candidates: Pixels, of: Rows) -> tuple[Floats, npt.NDArray[np.bool_]]:
            margins, settled = self._batches.apply(self._objective.judged, candidates, group.labels[images[of]])
            return margins, settled

        best, margins = square(
            group.pixels[images],
            judge,
            norm=self._norm,
            eps=self._eps,
            n_queries=self._budget.n_queries,
            seed=self._seed,
            stream=stream,
        )
        self._keep(group, images, best[:, None], margins[:, None])

    def _settle(self, group: "_Group", images: Rows, member: str) -> None:
        """Note which images are fooled by what would be saved: asked once more, of a random defense by other draws."""
        claimed = images[group.margins[images] > 0]
        if len(claimed):
            outputs, labels = self._outputs(self._judge, group.attacked[claimed]), group.labels[claimed]
            margins = self._margins(outputs, labels)
            fooled = margins > 0
            group.confirm(claimed[fooled], member)
            group.deny(claimed[~fooled], margins[~fooled])
            group.ended[claimed] = self._objective.beyond_doubt(outputs, labels)

    def _outputs(self, target: Any, pixels: Pixels) -> Floats:
        def one(part: Pixels) -> tuple[Floats]:
            return (target.outputs(to_float(part)),)

        outputs: Floats = self._batches.apply(one, pixels)[0]
        return outputs

    def _margins(self, outputs: Floats, labels: Rows) -> Floats:
        margins: Floats = self._objective.margins(outputs, labels).numpy()
        return margins


class _Group:
    """Images under attack.

    Attributes:
        pixels: The images, uint8.
        outputs: Of the target before the attack.
        labels: Its predictions, which the attack moves away from.
        attacked: What would be saved: the image itself, or what was found farthest behind the boundary.
        margins: By how much the best other class leads there.
        losses: Cross-entropies before the attack.
        without_gradient: Whether the gradient of that loss is zero everywhere.
        fooled_by: The member that fooled the image; blank while it stands.
        ended: Whether it is fooled so clearly that no other member attacks it.
    """

    def __init__(
        self,
        pixels: Pixels,
        outputs: Floats,
        labels: Rows,
        margins: Floats,
        losses: Floats,
        without_gradient: npt.NDArray[np.bool_],
    ) -> None:
        self.pixels, self.attacked, self.outputs, self.labels = pixels, pixels.copy(), outputs, labels
        self.margins, self.losses, self.without_gradient = margins.copy(), losses, without_gradient
        self.fooled_by = np.full(len(pixels), "", dtype=f"<U{max(map(len, MEMBERS))}")
        self.ended = np.zeros(len(pixels), bool)
        self._confirmed, self._confirmed_margins = self.attacked.copy(), self.margins.copy()
        self._last, self._best = losses.copy(), losses.copy()
        self._rises = np.zeros(len(pixels), bool)
        self._noted = False

    @property
    def attackable(self) -> Rows:
        """The numbers of the images whose attack has not ended."""
        return np.flatnonzero(~self.ended).astype(np.int32)

    def keep(self, images: Rows, attacked: Pixels, margins: Floats) -> None:
        """Keep attacked images that are farther behind the boundary than those before."""
        better = margins > self.margins[images]
        self.attacked[images[better]] = attacked[better]
        self.margins[images[better]] = margins[better]

    def confirm(self, images: Rows, member: str) -> None:
        """Note that what would be saved of images fools the target."""
        self._confirmed[images], self._confirmed_margins[images] = self.attacked[images], self.margins[images]
        self.fooled_by[images[self.fooled_by[images] == ""]] = member

    def deny(self, images: Rows, margins: Floats) -> None:
        """Take back points that do not fool the target after all: for those that did, of the images that have one."""
        self.margins[images] = margins
        back = images[self.fooled_by[images] != ""]
        self.attacked[back], self.margins[back] = self._confirmed[back], self._confirmed_margins[back]

    def note(self, images: Rows, outcome: apgd.Outcome) -> None:
        """Note the losses of a run on the cross-entropy, which has one aim."""
        self._noted = True
        self._last[images] = outcome.last[:, 0]
        self._best[images] = np.maximum(self._best[images], outcome.best[:, 0])
        self._rises[images] = outcome.rises[:, 0]

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `samples.csv`. Those of losses are about APGD on the cross-entropy."""
        columns: dict[str, list[Any]] = {
            "fooled_best": (self.fooled_by != "").astype(int).tolist(),
            "fooled_by": self.fooled_by.tolist(),
        }
        if not self._noted:
            return columns
        rounded = {"loss_start": self.losses, "loss_end": self._last, "loss_best": self._best}
        return {
            **{name: [f"{value:.6g}" for value in values] for name, values in rounded.items()},
            **columns,
            "loss_rises": self._rises.astype(int).tolist(),
        }
