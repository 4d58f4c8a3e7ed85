"""Train the network that the search has chosen: fine-tune it, and first train the selectors if its method has them."""

from collections.abc import Callable
from pathlib import Path

from models.data.dataset import Batch
from models.errors import InvalidRequest
from models.networks.network import Network
from models.structure.selector_plan import merge_stages
from models.training.finetune import Recipe, check_cutmix, finetune
from models.training.heal import Healing
from models.training.heal import heal as heal_states
from models.training.train_selectors import train_selectors
from search.methods import method_named
from service.jobs.job_request import FinetuneRequest, JobRequest
from service.pipeline.evaluation import Evaluation
from service.pipeline.ranked import Ranked

SELECTOR_RATE = 60.0
"""Learning rate of the token selectors, divided by the requested learning rate.

Selectors are new, so they need a high rate. Meanwhile the other layers learn with a little more than half of the
requested rate.
"""

AfterEpoch = Callable[[int, float], None]
"""A function that is called with the epoch and its loss after each epoch. It raises when the job has to stop."""


def check_training(request: JobRequest, evaluation: Evaluation) -> None:
    """Check the requested training.

    Raises: InvalidRequest when it is not possible with this model and data, or when the method needs a training that
    the request does not ask for.
    """
    method, epochs = method_named(request.method), request.finetune.epochs
    selectors = method.training == "selectors"
    if request.heal.steps and not evaluation.data.assessed:
        raise InvalidRequest(
            "Healing needs images, but the job has none. Add a data set (labels are not needed), or set heal.steps to"
            " 0.",
            field="heal.steps",
            value=request.heal.steps,
        )
    if request.heal.steps and selectors:
        raise InvalidRequest(
            f"Method {method.name!r} trains token selectors, and its blocks cannot be healed. Set heal.steps to 0.",
            field="heal.steps",
            value=request.heal.steps,
        )
    if selectors and not evaluation.data.assessed:
        raise InvalidRequest(
            f"Method {method.name!r} trains token selectors. This needs a data set, but the job has none. "
            "Add a data set."
        )
    if selectors and not evaluation.classes:
        raise InvalidRequest(
            f"Method {method.name!r} needs a classifier, but the model has none. Set the model option num_classes."
        )
    if selectors and not epochs:
        raise InvalidRequest(
            f"Method {method.name!r} trains token selectors, but finetune.epochs is 0. "
            "Set finetune.epochs to 1 or more.",
            field="finetune.epochs",
            value=0,
        )
    if epochs and not evaluation.data.assessed:
        raise InvalidRequest(
            "Fine-tuning needs a data set, but the job has none. Add a data set, or set finetune.epochs to 0."
        )
    if epochs and not evaluation.classes:
        raise InvalidRequest(
            "Fine-tuning needs a classifier, but the model has none. "
            "Set the model option num_classes, or set finetune.epochs to 0."
        )
    if epochs:
        check_cutmix(request.finetune.cutmix, labelled=evaluation.calibration.labels is not None)


def heal(
    request: JobRequest, ranked: Ranked, network: Network, data: Batch, *, checkpoint: Path, after_epoch: AfterEpoch
) -> Network:
    """Heal the network, and return it. Finished steps are stored in `checkpoint`, so a resumed job can continue."""
    wanted = request.heal
    healing = Healing(wanted.steps, wanted.learning_rate, wanted.batch, request.seed)
    return heal_states(network, ranked.source, data.images, healing, checkpoint=checkpoint, after_epoch=after_epoch)


def train(
    request: JobRequest,
    ranked: Ranked,
    network: Network,
    data: Batch,
    *,
    checkpoint: Path,
    after_epoch: AfterEpoch,
) -> Network:
    """Train the network, and return it.

    Finished epochs are stored in `checkpoint` and in a file beside it, so that a resumed job can continue.
    """
    wanted = request.finetune
    if method_named(request.method).training != "selectors":
        recipe = _recipe(wanted, wanted.epochs, wanted.learning_rate, request.seed)
        return finetune(
            network, ranked.evaluation.network, data, recipe, checkpoint=checkpoint, after_epoch=after_epoch
        )
    return _with_selectors(request, ranked, network, data, checkpoint=checkpoint, after_epoch=after_epoch)


def _with_selectors(
    request: JobRequest,
    ranked: Ranked,
    network: Network,
    data: Batch,
    *,
    checkpoint: Path,
    after_epoch: AfterEpoch,
) -> Network:
    """Merge similar stages, train the selectors, fine-tune the network, and return it.

    The selectors are trained for half of the epochs, rounded up. In the other epochs, the network is fine-tuned in the
    form that is delivered, which keeps the best tokens of each image.
    """
    wanted, teacher = request.finetune, ranked.evaluation.network
    assert network.plan is not None
    merged = merge_stages(network.plan)
    if merged != network.plan:
        network = ranked.prune(merged, request.recovery)
    if not network.reductions():  # the plan meets the budgets without token reduction, so there are no selectors
        recipe = _recipe(wanted, wanted.epochs, wanted.learning_rate, request.seed)
        return finetune(network, teacher, data, recipe, checkpoint=checkpoint, after_epoch=after_epoch)
    rest = wanted.epochs // 2
    recipe = _recipe(wanted, wanted.epochs - rest, SELECTOR_RATE * wanted.learning_rate, request.seed)
    beside = checkpoint.with_name(f"{checkpoint.stem}-selectors{checkpoint.suffix}")
    network = train_selectors(network, teacher, data, recipe, checkpoint=beside, after_epoch=after_epoch)
    if not rest:
        return network
    recipe = _recipe(wanted, rest, wanted.learning_rate, request.seed)
    return finetune(network, teacher, data, recipe, checkpoint=checkpoint, after_epoch=after_epoch)


def _recipe(wanted: FinetuneRequest, epochs: int, learning_rate: float, seed: int) -> Recipe:
    return Recipe(epochs, learning_rate, wanted.batch, wanted.distill, seed, wanted.cutmix)
