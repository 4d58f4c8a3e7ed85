"""The request for a job: the body of `POST /v1/jobs` and the arguments of `vitfit compress`.

This module does not import torch.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.structure import Precision
from search.budgets import Metric, quantity_of


class Strict(BaseModel):
    """Rejects unknown fields.

    Otherwise a misspelt option would be ignored, and the user would only notice after the job has run for an hour.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


class SettingRequest(Strict):
    """How the device runs the network. Every latency belongs to one such setting."""

    threads: int = Field(1, ge=1, le=256, description="Intra-op threads, each pinned to a core.")
    batch: int = Field(1, ge=1, le=1024, description="Images per run.")


class BudgetRequest(Strict):
    """One upper limit.

    `*_keep` is a fraction of the original network's value. `latency_ms` is milliseconds per run. `file_*` is the size
    of model.cpu.onnx. `memory_*` is the peak growth in memory of a process that loads and runs that file.
    """

    metric: Metric
    limit: float = Field(gt=0, allow_inf_nan=False, description="Upper limit in the metric's unit.")
    device: str = Field(
        "cpu", description="For latency metrics: a name from GET /v1/devices. Memory is measured on cpu."
    )
    setting: SettingRequest = Field(default_factory=lambda: SettingRequest())
    statistic: Literal["p50", "mean", "p95"] = Field(
        "p50",
        description="p50 of the runs of model.cpu.onnx. mean, p95: over images, of model.dynamic-tokens.onnx (method spvit).",
    )

    @model_validator(mode="after")
    def _over_images_one_by_one(self) -> "BudgetRequest":
        if self.over_images and (quantity_of(self.metric) != "latency" or self.setting.batch != 1):
            raise ValueError(
                f"statistic {self.statistic!r} is of latencies over single images: give it with latency_keep or latency_ms "
                "and setting.batch 1"
            )
        return self

    @property
    def over_images(self) -> bool:
        return self.statistic != "p50"


class FinetuneRequest(Strict):
    epochs: int = Field(0, ge=0, le=1000)
    learning_rate: float = Field(1e-4, gt=0, le=1)
    batch: int = Field(64, ge=1, le=4096)
    distill: float = Field(1.0, ge=0, le=100, description="Weight of KL(teacher || student) beside cross-entropy.")
    cutmix: float = Field(0, ge=0, le=10, description="Alpha of CutMix; 0: none. Needs labels.")


class GatesRequest(Strict):
    """How the gates are trained before the ranking, for methods that rank by gates (vtp)."""

    epochs: int = Field(0, ge=0, le=1000)
    l1: float = Field(1e-4, gt=0, le=10, description="Weight of the sum of the gates' sizes beside the task's loss.")
    learning_rate: float = Field(1e-4, gt=0, le=1, description="Of the network's weights.")
    gate_learning_rate: float = Field(1e-2, gt=0, le=1)
    batch: int = Field(64, ge=1, le=4096)


class TrialResources(Strict):
    """The resources of a node that one trial occupies, if the server runs its trials on a cluster."""

    cpus: float = Field(1, gt=0, le=1024, description="It computes with so many threads, rounded, at least one.")
    gpus: float = Field(0, ge=0, le=64)
    custom: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        max_length=8,
        description="Amounts of resources by the names that the cluster's nodes gave them, such as a measuring device.",
    )


class JobRequest(Strict):
    """One compression. Ids come from `POST /v1/models` and `POST /v1/datasets`."""

    model: str = Field(min_length=1, max_length=200, description="Id of an uploaded model.")
    dataset: str | None = Field(
        None, max_length=200, description="Id of a data set; without one accuracy is not assessed."
    )
    budgets: Annotated[tuple[BudgetRequest, ...], Field(min_length=1, max_length=8)]
    objective: Literal["score", "latency"] = Field(
        "score", description="score: the best score within the budgets. latency: the fastest within `max_loss`."
    )
    max_loss: float | None = Field(
        None, gt=0, lt=1, description="Largest accuracy (or agreement) given up, 0.01 = 1 point."
    )
    method: str = "joint"
    criterion: str | None = Field(None, description="Importance; the method's own when left out.")
    space: str | None = Field(
        None, max_length=40, description="Where to search; the method's own space when left out. mdc also takes paper."
    )
    target: str | None = Field(
        None,
        max_length=200,
        description="Method up-vit: a smaller timm model whose exact shape is delivered, without a search.",
    )
    precisions: Annotated[tuple[Precision, ...], Field(min_length=1)] = Field(
        ("fp32",),
        description="What the search may use. int8: linear layers in 8 bits, the sensitive ones left in fp32 where that pays; with "
        "fp32 beside it the search also decides between pruning more in fp32 and less in int8. fp16: everything, alone, for GPUs and "
        "for profiles that know it.",
    )
    trials: int = Field(32, ge=1, le=2000)
    parallel_trials: int = Field(
        1,
        ge=1,
        le=256,
        description="Trials at a time, on a cluster. The number decides which trials there are; how many nodes there are does not.",
    )
    trial_resources: TrialResources = Field(default_factory=lambda: TrialResources())
    seed: int = Field(0, ge=0, lt=2**31)
    recovery: bool = Field(True, description="Closed-form recovery after pruning.")
    keep_spatial: bool = Field(
        False, description="Remove no tokens, so that features keep their grid: for detection and segmentation."
    )
    finetune: FinetuneRequest = Field(default_factory=lambda: FinetuneRequest())
    gates: GatesRequest = Field(default_factory=lambda: GatesRequest())
    name: str | None = Field(None, max_length=100)
    priority: int = Field(0, ge=-100, le=100, description="Higher ones start first, among equals the oldest.")
    time_limit_s: float | None = Field(
        None, gt=0, le=30 * 86_400, description="A job that has not ended so long after its first start fails."
    )

    @model_validator(mode="after")
    def _objective_has_its_limit(self) -> "JobRequest":
        if (self.objective == "latency") != (self.max_loss is not None):
            raise ValueError(
                "max_loss belongs to objective 'latency', and that objective needs it: give both or neither"
            )
        return self

    @model_validator(mode="after")
    def _each_precision_once(self) -> "JobRequest":
        if len(set(self.precisions)) < len(self.precisions):
            raise ValueError(f"precisions names one twice: {', '.join(self.precisions)}")
        return self

    @model_validator(mode="after")
    def _target_fixes_the_shape(self) -> "JobRequest":
        if self.target is not None and self.method != "up-vit":
            raise ValueError(
                f"target belongs to method 'up-vit', not to {self.method!r}: set method, or leave target out"
            )
        if self.target is not None and self.objective != "score":
            raise ValueError("target fixes the shape: there is no cost to lower. Leave objective and max_loss out")
        return self

    @model_validator(mode="after")
    def _tokens_depend_on_the_image(self) -> "JobRequest":
        if self.method != "spvit" and any(budget.over_images for budget in self.budgets):
            raise ValueError(
                f"statistic mean or p95 limits a network whose number of tokens depends on the image, which method 'spvit' makes, "
                f"not {self.method!r}: set method, or leave statistic out"
            )
        return self

    @property
    def planned_trials(self) -> int:
        """The number of trials of the search.

        It is 1 for a target with one precision, because then there is only one candidate.
        """
        return 1 if self.target is not None and len(self.precisions) == 1 else self.trials
