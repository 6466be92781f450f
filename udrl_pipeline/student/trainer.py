"""transformers' Trainer over sequences in their order: in one process, or as one of several that share each batch (DDP)."""

import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from udrl_pipeline import metrics, precision
from udrl_pipeline.settings import StudentSettings
from udrl_pipeline.student.optimiser import muon
from udrl_pipeline.student.sequences import IGNORED, TrainingSequence, collate, tokens_of

logger = logging.getLogger(__name__)

#: Where the whole checkpoints of a training run lie in its scratch folder.
CHECKPOINTS = "checkpoints"
#: Told of each line of the curve: step, how many there are, loss (none: the training begins at this step) and seconds of a clock.
Listener = Callable[[int, int, float | None, float], None]


class Progress:
    """A line in the log now and then: a step's loss, how fast it goes, and the time that is left. `speed` keeps the tokens/s."""

    def __init__(self, sequences: Sequence[TrainingSequence], batch_rows: int, **labels: str) -> None:
        self.speed: list[dict[str, float]] = []
        self._sequences, self._batch_rows, self._labels = sequences, batch_rows, labels
        self._began = self._last = 0.0
        self._first = self._told = 0

    def __call__(self, step: int, of: int, loss: float | None, now: float) -> None:
        if loss is None:
            self._began = self._last = now
            self._first = self._told = step
        elif step > self._told:
            tokens = tokens_of(self._sequences[self._told * self._batch_rows : step * self._batch_rows])
            self.speed.append({"step": step, "tokens_per_s": round(tokens / (now - self._last), 1)})
            left = (now - self._began) / (step - self._first) * (of - step)
            logger.info("step %d of %d, loss %.3f, %.0f tokens/s, %.0f s left", step, of, loss, self.speed[-1]["tokens_per_s"], left)
            metrics.TRAIN_STEPS.add(step - self._told, **self._labels)
            metrics.TRAIN_TOKENS.add(tokens, **self._labels)
            metrics.TRAIN_LOSS.set(loss, **self._labels)
            self._last, self._told = now, step


def last_step(scratch: Path) -> int:
    """The step of the last whole checkpoint; 0 where there is none."""
    return max((int(folder.name.rpartition("-")[2]) for folder in (scratch / CHECKPOINTS).glob("checkpoint-*")), default=0)


def train(
    model: Any,
    pad: int,
    sequences: list[TrainingSequence],
    held_out: list[TrainingSequence],
    options: StudentSettings,
    scratch: Path,
    tell: Listener,
) -> list[dict[str, float]]:
    """Train the model (fp32) from the last checkpoint in `scratch` on. Returns the Trainer's history.

    Among several processes each takes its part of every batch, so that a step sees the same sequences on any number of them.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    from torch.utils.data import DataLoader, SequentialSampler
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class InOrder(Trainer):
        def _get_train_sampler(self, *arguments: Any, **options: Any) -> Any:
            return SequentialSampler(features)

        def create_optimizer(self, model: Any = None) -> Any:
            if options.optimiser == "muon":
                self.optimizer: Any = muon(model or self.model, options.learning_rate, options.weight_decay)
                return self.optimizer
            return super().create_optimizer(model)

        def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
            """All of it for each of several processes: shared out, its last rows would be filled up with others. So there is nothing to
            gather, and a short last batch counts by its rows, as in one process."""
            if options.processes == 1:
                return super().get_eval_dataloader(eval_dataset)
            size = arguments.per_device_eval_batch_size
            rows = (min(size, len(held_out) - first) for first in range(0, len(held_out), size))
            self.gather_function = lambda losses: losses[: next(rows)]
            return DataLoader(self.eval_dataset, size, collate_fn=self.data_collator)

    class Keep(TrainerCallback):
        """Takes a checkpoint over once it is whole, and drops the one before: a kill in the middle of one costs that one alone."""

        def on_save(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            if arguments.world_size > 1:
                torch.distributed.barrier()  # every process puts its random numbers into it
            if not state.is_world_process_zero:
                return
            whole = Path(arguments.output_dir) / f"checkpoint-{state.global_step}"
            whole.rename(kept / whole.name)
            for older in kept.iterdir():
                if older.name != whole.name:
                    shutil.rmtree(older)

    class Tell(TrainerCallback):
        def on_train_begin(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                tell(state.global_step, state.max_steps, None, time.monotonic())

        def on_log(self, arguments: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs and state.is_world_process_zero:
                tell(state.global_step, state.max_steps, float(logs["loss"]), time.monotonic())

    features = [sequence.features() for sequence in sequences]
    if options.processes > 1:  # the last batch is short; what fills it up counts nothing
        features += [{"input_ids": [pad, pad], "labels": [IGNORED, IGNORED]}] * (-len(features) % options.batch_rows)
    total = -(-len(sequences) // options.batch_rows)
    told = max(1, total // 40)
    kept, staged = scratch / CHECKPOINTS, scratch / "staged"
    kept.mkdir(exist_ok=True)
    if os.environ.get("RANK", "0") == "0":
        shutil.rmtree(staged, ignore_errors=True)
    on_cpu = not torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(staged),
        num_train_epochs=1,
        per_device_train_batch_size=options.batch_rows // options.processes,
        per_device_eval_batch_size=options.batch_rows * 2,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(total * options.warmup),
        weight_decay=options.weight_decay,
        max_grad_norm=1.0,
        bf16=precision.in_bf16(),
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and "RANK" in os.environ else None,
        ddp_find_unused_parameters=False,
        logging_steps=told,
        eval_strategy="steps" if held_out else "no",
        eval_steps=-(-total // 4),
        # only where the loss has just been told: a checkpoint does not hold what was summed up since, and the curve would show it
        save_steps=-(-options.save_every // told) * told,
        seed=options.seed,
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        log_level="error",
    )
    if on_cpu:
        # on sequences this short the plain attention is the faster one: 970 against 719 tokens/s (benchmarks/training.py)
        model.set_attn_implementation("eager")
    trainer = InOrder(
        model=model,
        args=arguments,
        train_dataset=features,
        eval_dataset=[s.features() for s in held_out] or None,
        data_collator=lambda rows: collate(rows, pad),
        callbacks=[Tell(), Keep()],
    )
    trainer.remove_callback(PrinterCallback)
    done = last_step(scratch)
    # on the object, not around it: whatever wraps the model (DDP) still calls it
    model.forward = partial(answer_loss, model)
    try:
        trainer.train(resume_from_checkpoint=str(kept / f"checkpoint-{done}") if done else None)
    finally:
        del model.forward
    history: list[dict[str, float]] = trainer.state.log_history
    return history


def answer_loss(model: Any, input_ids: Any, attention_mask: Any, labels: Any, num_items_in_batch: Any = None, **_: Any) -> dict[str, Any]:
    """The model's own loss, without the logits that it would throw away: those of the prompt and of the padding.

    Args:
        input_ids, attention_mask, labels: [rows, longest].
        num_items_in_batch: By how many the sum of the losses is divided; by default those of this batch.
    """
    from torch.nn.functional import cross_entropy

    hidden = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    following = labels[:, 1:]
    told = following != IGNORED
    logits = model.get_output_embeddings()(hidden[:, :-1][told]).float()
    return {
        "loss": cross_entropy(logits, following[told], reduction="sum") / (told.sum() if num_items_in_batch is None else num_items_in_batch)
    }


def losses(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """The loss curve of a Trainer's history."""
    curve = []
    for entry in history:
        if "loss" in entry:
            curve.append({"step": entry["step"], "loss": round(float(entry["loss"]), 4)})
        elif "eval_loss" in entry:
            curve.append({"step": entry["step"], "validation_loss": round(float(entry["eval_loss"]), 4)})
    return curve
