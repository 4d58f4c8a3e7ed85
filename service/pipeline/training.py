"""How the network that a search chose is trained: plain fine-tuning, or what its method brings before it."""

from collections.abc import Callable
from pathlib import Path

from models.data.dataset import Batch
from models.errors import InvalidRequest
from models.networks.network import Network
from models.structure.selector_plan import merge_stages
from models.training.finetune import Recipe, check_cutmix, finetune
from models.training.train_selectors import train_selectors
from search.methods import method_named
from service.jobs.job_request import FinetuneRequest, JobRequest
from service.pipeline.evaluation import Evaluation
from service.pipeline.ranked import Ranked

SELECTOR_RATE = 60.0
"""Learning rate of selectors, which are new, over the request's; the backbone then learns at a little more than half of the request's."""

AfterEpoch = Callable[[int, float], None]


def check_training(request: JobRequest, evaluation: Evaluation) -> None:
    """Raises: InvalidRequest when the job's training cannot be done, or when the method needs one that is not asked for."""
    method, epochs = method_named(request.method), request.finetune.epochs
    selectors = method.training == "selectors"
    if selectors and not evaluation.data.assessed:
        raise InvalidRequest(f"Method {method.name!r} trains token selectors on images: give the job a data set.")
    if selectors and not evaluation.classes:
        raise InvalidRequest(f"Method {method.name!r} needs a classifier; this model has none. Set num_classes.")
    if selectors and not epochs:
        raise InvalidRequest(
            f"Method {method.name!r} trains its token selectors: set finetune.epochs to at least 1, not 0.",
            field="finetune.epochs",
            value=0,
        )
    if epochs and not evaluation.data.assessed:
        raise InvalidRequest("Fine-tuning needs a data set; this job has none. Add one, or set finetune.epochs to 0.")
    if epochs and not evaluation.classes:
        raise InvalidRequest(
            "Fine-tuning needs a classifier; this model has none. Set num_classes, or finetune.epochs to 0."
        )
    if epochs:
        check_cutmix(request.finetune.cutmix, labelled=evaluation.calibration.labels is not None)


def train(
    request: JobRequest,
    ranked: Ranked,
    network: Network,
    data: Batch,
    checkpoint: Path,
    after_epoch: AfterEpoch,
) -> Network:
    """The trained network. Finished epochs are kept in, and beside, `checkpoint`; after_epoch may raise to stop."""
    wanted = request.finetune
    if method_named(request.method).training != "selectors":
        recipe = _recipe(wanted, wanted.epochs, wanted.learning_rate, request.seed)
        return finetune(network, ranked.evaluation.network, data, recipe, checkpoint, after_epoch)
    return _with_selectors(request, ranked, network, data, checkpoint, after_epoch)


def _with_selectors(
    request: JobRequest,
    ranked: Ranked,
    network: Network,
    data: Batch,
    checkpoint: Path,
    after_epoch: AfterEpoch,
) -> Network:
    """Similar stages are merged, selectors are trained for the first half of the epochs (the longer one), and the network
    as it will be delivered, with the best tokens of each image, for the rest."""
    wanted, teacher = request.finetune, ranked.evaluation.network
    assert network.plan is not None
    merged = merge_stages(network.plan)
    if merged != network.plan:
        network = ranked.prune(merged, request.recovery)
    if not network.reductions():  # the budget was met without removing any token
        recipe = _recipe(wanted, wanted.epochs, wanted.learning_rate, request.seed)
        return finetune(network, teacher, data, recipe, checkpoint, after_epoch)
    rest = wanted.epochs // 2
    recipe = _recipe(wanted, wanted.epochs - rest, SELECTOR_RATE * wanted.learning_rate, request.seed)
    beside = checkpoint.with_name(f"{checkpoint.stem}-selectors{checkpoint.suffix}")
    network = train_selectors(network, teacher, data, recipe, beside, after_epoch)
    if not rest:
        return network
    recipe = _recipe(wanted, rest, wanted.learning_rate, request.seed)
    return finetune(network, teacher, data, recipe, checkpoint, after_epoch)


def _recipe(wanted: FinetuneRequest, epochs: int, learning_rate: float, seed: int) -> Recipe:
    return Recipe(epochs, learning_rate, wanted.batch, wanted.distill, seed, wanted.cutmix)
