"""The request for a job: the body of `POST /v1/jobs` and the arguments of `vitfit compress`.

This module does not import torch.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from models.structure import Precision
from search.budgets import Metric, quantity_of


class Strict(BaseModel):
    """A request that rejects unknown fields.

    Otherwise the server would ignore a misspelt option, and the user would notice this only after the job has ended.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


class SettingRequest(Strict):
    """How the device runs the network. A latency has no meaning without its setting."""

    threads: int = Field(
        1, ge=1, le=256, description="Number of threads that compute one run. Each thread is pinned to a core."
    )
    batch: int = Field(1, ge=1, le=1024, description="Number of images in one run.")


class BudgetRequest(Strict):
    """One upper limit.

    `*_keep` is a fraction of the original's value, above 0 and at most 1. `latency_ms` is the latency of one run in
    milliseconds. `macs` is the number of multiply-accumulates for one image. `file_*` is the size of model.cpu.onnx.
    `memory_*` is the peak growth in memory of a process that loads and runs this file. `*_bytes` is a number of bytes.
    """

    metric: Metric
    limit: float = Field(gt=0, allow_inf_nan=False, description="Upper limit, in the unit of the metric.")
    device: str = Field(
        "cpu",
        description="Name of a device from GET /v1/devices. Only latency can be limited on another device than cpu.",
    )
    setting: SettingRequest = Field(default_factory=lambda: SettingRequest())
    statistic: Literal["p50", "mean", "p95"] = Field(
        "p50",
        description="The value of the latency that is limited. p50: the median over all runs of model.cpu.onnx. mean, "
        "p95: the mean and the 95th percentile over images, for model.dynamic-tokens.onnx (only method spvit).",
    )

    @model_validator(mode="after")
    def _over_images_one_by_one(self) -> "BudgetRequest":
        if self.over_images and (quantity_of(self.metric) != "latency" or self.setting.batch != 1):
            raise ValueError(
                f"statistic {self.statistic!r} is computed over single images, so it needs metric latency_keep or "
                f"latency_ms and setting.batch 1, not {self.metric} and {self.setting.batch}"
            )
        return self

    @property
    def over_images(self) -> bool:
        return self.statistic != "p50"


class FinetuneRequest(Strict):
    """How the delivered network is fine-tuned, with the original as its teacher."""

    epochs: int = Field(0, ge=0, le=1000, description="Number of epochs. 0 means no fine-tuning.")
    learning_rate: float = Field(1e-4, gt=0, le=1)
    batch: int = Field(64, ge=1, le=4096, description="Number of images in one training step.")
    distill: float = Field(
        1.0, ge=0, le=100, description="Weight of KL(teacher || student), which is added to the cross-entropy."
    )
    cutmix: float = Field(
        0, ge=0, le=10, description="Parameter alpha of CutMix. 0 means no CutMix. CutMix needs labels."
    )


class HealRequest(Strict):
    """How the delivered network is healed: trained without labels until its internal states are the original's."""

    steps: int = Field(0, ge=0, le=1_000_000, description="Number of training steps. 0 means no healing.")
    learning_rate: float = Field(3e-4, gt=0, le=1)
    batch: int = Field(32, ge=1, le=4096, description="Number of images in one training step.")


class GatesRequest(Strict):
    """How the gates are trained before the ranking, for methods that rank by gates (vtp)."""

    epochs: int = Field(0, ge=0, le=1000, description="Number of epochs. Method vtp needs 1 or more.")
    l1: float = Field(
        1e-4, gt=0, le=10, description="Weight of the sum of the absolute gate values, which is added to the loss."
    )
    learning_rate: float = Field(1e-4, gt=0, le=1, description="Learning rate of the network's weights.")
    gate_learning_rate: float = Field(1e-2, gt=0, le=1, description="Learning rate of the gates.")
    batch: int = Field(64, ge=1, le=4096, description="Number of images in one training step.")


class TrialResources(Strict):
    """The resources of a node that one trial occupies, if the server runs its trials on a cluster."""

    cpus: float = Field(
        1,
        gt=0,
        le=1024,
        description="CPU cores of one trial. The trial computes with this number of threads (rounded, at least 1).",
    )
    gpus: float = Field(0, ge=0, le=64, description="GPUs of one trial.")
    custom: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        max_length=8,
        description="Other resources of one trial: the name that the nodes of the cluster use, and the amount.",
    )


def _at_least_one(budgets: tuple[BudgetRequest, ...]) -> tuple[BudgetRequest, ...]:
    if not budgets:
        raise ValueError(
            'there is no budget. Give at least one, such as {"metric": "latency_keep", "limit": 0.6}, or give '
            "objective latency and max_loss, which need none"
        )
    return budgets


class JobRequest(Strict):
    """The request for one compression job. The ids come from `POST /v1/models` and `POST /v1/datasets`."""

    model: str = Field(min_length=1, max_length=200, description="Id of an uploaded model.")
    dataset: str | None = Field(
        None, max_length=200, description="Id of a data set. Without a data set, accuracy is not assessed."
    )
    budgets: Annotated[tuple[BudgetRequest, ...], AfterValidator(_at_least_one)] = Field(
        default_factory=tuple,
        validate_default=True,
        max_length=8,
        json_schema_extra={"minItems": 1},
        description="Upper limits, which must all hold. With objective latency, they may be left out: the latency on "
        "cpu is then lowered from that of the original.",
    )
    objective: Literal["score", "latency"] = Field(
        "score",
        description="score: find the best score within the budgets. "
        "latency: find the lowest latency with a loss of at most `max_loss`.",
    )
    max_loss: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Largest allowed loss of accuracy (without labels: of agreement). 0.01 is one percentage point.",
    )
    method: str = Field("joint", description="Name of a method from GET /v1/methods.")
    criterion: str | None = Field(
        None, description="The criterion that scores members. Without it, the job uses the method's own criterion."
    )
    basis: str | None = Field(
        None,
        max_length=40,
        description="rotated: q/k dims, v dims and embedding dims are cut in bases that are computed for the network, "
        "where they carry least. chosen: a criterion chooses among the dims that the network has. Without it, method "
        "joint uses rotated, and all other methods use chosen.",
    )
    space: str | None = Field(
        None,
        max_length=40,
        description="The space of the search. Without it, the job uses the method's own space. "
        "Method mdc also supports paper.",
    )
    target: str | None = Field(
        None,
        max_length=200,
        description="A smaller timm model. The job delivers its exact shape, without a search. Method joint uses "
        "rotated bases, method up-vit chooses members.",
    )
    precisions: tuple[Precision, ...] = Field(
        ("fp32",),
        min_length=1,
        description="The precisions that the search may use. int8: linear layers have 8 bits; the search leaves "
        "sensitive layers in fp32 if this gives a better result. fp32 and int8: the search also chooses between more "
        "pruning in fp32 and less pruning in int8. fp16: all layers have 16 bits; it must be the only precision, and "
        "it is for GPUs and for profiles that describe it.",
    )
    trials: int = Field(32, ge=1, le=2000, description="Number of policies that the search tries.")
    parallel_trials: int = Field(
        1,
        ge=1,
        le=256,
        description="Number of trials that a cluster runs at the same time. This number changes which policies are "
        "tried. The number of nodes does not.",
    )
    trial_resources: TrialResources = Field(default_factory=lambda: TrialResources())
    seed: int = Field(0, ge=0, lt=2**31)
    recovery: bool = Field(True, description="Whether pruned networks are recovered. Recovery needs no training.")
    keep_spatial: bool = Field(
        False,
        description="Whether all tokens are kept. The features then keep their grid, for detection and segmentation.",
    )
    heal: HealRequest = Field(default_factory=lambda: HealRequest())
    finetune: FinetuneRequest = Field(default_factory=lambda: FinetuneRequest())
    gates: GatesRequest = Field(default_factory=lambda: GatesRequest())
    name: str | None = Field(None, max_length=100, description="A name for the job, for people.")
    priority: int = Field(
        0, ge=-100, le=100, description="Jobs with a higher priority start first. With equal priority, the oldest does."
    )
    time_limit_s: float | None = Field(
        None,
        gt=0,
        le=30 * 86_400,
        description="Time limit in seconds after the first start of the job. A job that has not ended by then fails.",
    )

    @model_validator(mode="before")
    @classmethod
    def _lowers_the_latency(cls, body: Any) -> Any:
        """Add the budget that objective latency has if the request names none."""
        if isinstance(body, dict) and body.get("objective") == "latency" and "budgets" not in body:
            return {**body, "budgets": [{"metric": "latency_keep", "limit": 1.0}]}
        return body

    @model_validator(mode="after")
    def _objective_has_its_limit(self) -> "JobRequest":
        if (self.objective == "latency") != (self.max_loss is not None):
            raise ValueError(
                f"objective is {self.objective!r} and max_loss is {self.max_loss}, but max_loss and objective "
                "'latency' need each other. Give both or neither"
            )
        return self

    @model_validator(mode="after")
    def _each_precision_once(self) -> "JobRequest":
        if len(set(self.precisions)) < len(self.precisions):
            raise ValueError(
                f"precisions contains a value twice: {', '.join(self.precisions)}. Give each precision once"
            )
        return self

    @model_validator(mode="after")
    def _target_fixes_the_shape(self) -> "JobRequest":
        if self.target is not None and self.method not in ("joint", "up-vit"):
            raise ValueError(
                f"target is for the methods 'joint' and 'up-vit' only, but method is {self.method!r}. "
                "Set method to one of them, or leave out target"
            )
        if self.target is not None and self.objective != "score":
            raise ValueError(
                f"target fixes the shape, so objective {self.objective!r} cannot lower any cost. "
                "Leave out objective and max_loss"
            )
        return self

    @model_validator(mode="after")
    def _tokens_depend_on_the_image(self) -> "JobRequest":
        if self.method != "spvit" and any(budget.over_images for budget in self.budgets):
            raise ValueError(
                "statistic mean or p95 is for method 'spvit' only, because its number of tokens depends on the image, "
                f"but method is {self.method!r}. Set method to 'spvit', or leave out statistic"
            )
        return self

    @property
    def planned_trials(self) -> int:
        """Number of trials of the search.

        It is 1 for a target with one precision, because there is then only one policy.
        """
        return 1 if self.target is not None and len(self.precisions) == 1 else self.trials
