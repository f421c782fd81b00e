"""Training in a pipeline of stages: the verbs of an engine that the loop uses, over DeepSpeed's `PipelineModule`.

Every rank makes the same micro-batches as the others of its share of the data, so that their structure is known
everywhere, and nothing but hidden states and their gradients travels. The layers of a stage are one layer to DeepSpeed,
which sends, receives, sums gradients and steps in the order of its schedule: one forward, one backward in turn, so that
a stage keeps the activations of no more micro-batches than there are stages (PipeDream-Flush: Narayanan et al., 2021).
"""

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.pipe import LayerSpec, PipelineModule
from deepspeed.runtime.pipe import schedule
from torch import Tensor, nn

from glmft.dist import World
from glmft.elsewhere import is_elsewhere, is_weightless
from glmft.models.stages import Cut, first_trained, language_model, shared_parameters
from glmft.training.job import Batch, Job, autocast, summed_loss


class Stage(nn.Module):
    """One stage's part of the forward pass; what it has for parameters is all that DeepSpeed sees of the model.

    Args:
        model: tuned and settled.
        anchors: parameters without effect, for groups of the optimizer that have none here: DeepSpeed wants a gradient
            path, and of every group a norm to add up, on every stage.
    """

    def __init__(self, model: nn.Module, cut: Cut, world: World, anchors: int):
        super().__init__()
        self.whole = (model,)  # a tuple hides it from this module's parameters
        self.cut, self.world = cut, world
        self.here = nn.ParameterList(p for p in model.parameters() if not is_elsewhere(p))
        self.anchors = nn.ParameterList(torch.zeros(1) for _ in range(anchors))
        self.is_above_frozen = 0 < cut.stage <= first_trained(model, cut)
        self.batches: Iterator[Batch] = iter(())
        self.scale = 1.0
        self.losses: list[Tensor] = []

    def train(self, mode: bool = True) -> Any:
        self.whole[0].train(mode)
        return super().train(mode)

    def forward(self, received: Tensor) -> Tensor:
        """ids [1, s] on the first stage, else hidden states [1, P + s, h] -> hidden states, or on the last the loss."""
        batch = dict(next(self.batches))
        core, cut = language_model(self.whole[0]), self.cut
        if cut.stage:
            hidden, virtual = received.detach() if self.is_above_frozen else received, core.config.prompt_seq_len or 0
            cut.virtual, batch["inputs_embeds"] = hidden[:, :virtual], hidden[:, virtual:]
            del batch["input_ids"]
        if self.world.sees_loss:
            loss = summed_loss(core, batch, self.world)
            self.losses.append(loss.detach().float())
            return self.moored(loss * self.scale, received)
        structure = {key: value for key, value in batch.items() if key not in ("labels", "loss_positions")}
        with autocast(self.world):
            hidden = core.base_model(**structure, use_cache=False).last_hidden_state
        if core.config.prompt_seq_len:
            hidden = torch.cat((cut.virtual, hidden), dim=1)
        return self.moored(hidden, received)

    def moored(self, out: Tensor, received: Tensor) -> Tensor:
        """The same, with gradient paths to the anchors, and to what was received where the graph does not reach it."""
        if self.anchors:
            out = out + 0.0 * sum(anchor.sum() for anchor in self.anchors).to(out.dtype)
        return ZeroGradient.apply(out, received) if self.is_above_frozen else out


class ZeroGradient(torch.autograd.Function):
    """The first of two tensors; the gradient of the second is zeros. DeepSpeed sends one back from every stage."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, received: Tensor) -> Tensor:
        ctx.received = (received.shape, received.dtype, received.device)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        shape, dtype, device = ctx.received
        return gradient, torch.zeros(shape, dtype=dtype, device=device)


class StagedModule(PipelineModule):
    """One layer to each rank, which is all of its stage; and the parameters that several stages share."""

    def __init__(self, model: nn.Module, cut: Cut, world: World, anchors: int):
        layers = [LayerSpec(Stage, model, cut, world, anchors) for _ in cut.layers]
        with contextlib.redirect_stdout(io.StringIO()):  # what it prints about them tells nobody anything
            super().__init__(layers, num_stages=len(layers), partition_method="uniform", dynamic_shape=True)
        shared = shared_parameters(model, cut)
        groups = {stages: own_group(stages, world) for stages in sorted({stages for _, stages in shared})}
        self.shared = [(parameter, groups[stages]) for parameter, stages in shared if cut.stage in stages]
        several = {id(parameter): stages for parameter, stages in shared}
        for parameter in self.parameters():  # so that DeepSpeed counts each once in the gradient's norm
            parameter.ds_pipe_replicated = cut.stage != min(several.get(id(parameter), [cut.stage]))
            parameter.model_parallel = not parameter.ds_pipe_replicated

    def get_tied_weights_and_groups(self) -> list[tuple[nn.Parameter, Any]]:
        """What DeepSpeed sums the gradients of, and over which ranks."""
        return self.shared


def own_group(stages: tuple[int, ...], world: World) -> Any:
    """Of the ranks of some stages those of this rank's share of the data. Collective."""
    shares = range(world.data_size)
    groups = [dist.new_group([stage * world.data_size + share for stage in stages]) for share in shares]
    return groups[world.data_rank]


class WithoutStep(schedule.TrainSchedule):
    """Forward and backward passes, and the sums of gradients; whether to step is the loop's to say."""

    def steps(self) -> Iterator[list[Any]]:
        for commands in super().steps():
            yield [command for command in commands if not isinstance(command, schedule.OptimizerStep)]


class OnlyStep(schedule.PipeSchedule):
    """The step of the optimizer."""

    def steps(self) -> Iterator[list[Any]]:
        yield [schedule.OptimizerStep()]

    def num_pipe_buffers(self) -> int:
        return 0


class Pipeline:
    """The verbs of DeepSpeed's engine that the loop uses.

    Its `train_batch` steps before anybody has seen the loss, and prints; so schedules are run here in two parts, by the
    method that it runs them with, `_exec_schedule`.

    Args:
        model: tuned and settled.
        optimizer: over what trains of this rank's stage.
    """

    def __init__(self, model: nn.Module, optimizer: Any, job: Job):
        self.module, self.job = model, job
        empty = [group for group in optimizer.param_groups if not group["params"]]
        staged = StagedModule(model, job.cut, job.world, len(empty))
        [self.stage] = staged.forward_funcs
        for group, anchor in zip(empty, self.stage.anchors, strict=True):
            group["params"].append(anchor)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=staged, optimizer=optimizer, config=job.ds_config
        )
        self.engine._compute_loss = True
        self.device = self.engine.device
        self.zero_optimization_stage = self.engine.zero_optimization_stage
        self.was_step_applied = self.engine.was_step_applied
        self.get_global_grad_norm = self.engine.get_global_grad_norm
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and not is_weightless(buffer):
                    module._buffers[name] = buffer.to(self.device)

    def train(self) -> None:
        self.engine.module.train()

    def eval(self) -> None:
        self.engine.module.eval()

    def passes(self, micro_batches: list[Batch], scale: float) -> list[Tensor]:
        """Forward and backward of all micro-batches; the loss of each on the last stage, zeros on the others."""
        count = len(micro_batches)
        self.engine.set_train_batch_size(self.job.plan.micro_batch * count * self.job.world.data_size)
        self.engine.total_loss = None
        # DeepSpeed divides the loss by the number of micro-batches, to average over them.
        return self._run(WithoutStep, micro_batches, scale * count)

    def step(self) -> None:
        self._run(OnlyStep, [], 1.0)

    @torch.no_grad()
    def losses(self, micro_batches: list[Batch]) -> list[Tensor]:
        """Forward passes alone: the loss of each micro-batch on the last stage, zeros on the others."""
        return self._run(schedule.InferenceSchedule, micro_batches, 1.0)

    def _run(self, kind: Callable[..., Any], micro_batches: list[Batch], scale: float) -> list[Tensor]:
        stage, world = self.stage, self.job.world
        stage.batches, stage.scale, stage.losses = iter(micro_batches), scale, []
        self.engine.set_dataiterator((batch["input_ids"], None) for batch in micro_batches)
        self.engine._exec_schedule(kind(micro_batches=len(micro_batches), stages=world.stages, stage_id=world.stage))
        return stage.losses or [torch.zeros((), device=self.device) for _ in micro_batches]
