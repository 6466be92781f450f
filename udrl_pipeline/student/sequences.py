"""Rows -> token sequences in the order in which they are trained on. Rendering is the augmentation: what is left out or swapped is
drawn here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from udrl_pipeline.commands import Command, CommandSpace, achieved, render_answer, spaced
from udrl_pipeline.settings import StudentSettings
from udrl_pipeline.student.recipes import Recipe
from udrl_pipeline.student.swapping import Words
from udrl_pipeline.versioning import unit_draw

#: Batches whose rows are sorted by length together, so that little is padded while batches stay mixed.
BUCKET_BATCHES = 40
IGNORED = -100
#: Where the intent stands in a rendered prompt.
SLOT = "\0"


@dataclass(frozen=True, slots=True)
class TrainingSequence:
    """One training sequence, and the row that it renders; the loss counts the text and its end, not the prompt."""

    prompt: list[int]
    answer: list[int]
    row_key: str

    def features(self) -> dict[str, list[int]]:
        return {"input_ids": self.prompt + self.answer, "labels": [IGNORED] * len(self.prompt) + self.answer}


def tokens_of(sequences: Sequence[TrainingSequence]) -> int:
    return sum(len(sequence.prompt) + len(sequence.answer) for sequence in sequences)


def drop_out(command: Command, recipe: Recipe, dropout: float, idea_dropout: float, *draw: Any) -> Command:
    """Leave out length, quality and idea, each for itself, on a share of the sequences; length and quality always, where the recipe is
    uncommanded."""
    words = command.words if recipe.commanded and unit_draw("words", *draw) >= dropout else None
    quality = command.quality if recipe.commanded and unit_draw("quality", *draw) >= dropout else None
    intent = command.intent if unit_draw("idea", *draw) >= idea_dropout else ""
    return replace(command, intent=intent, words=words, quality=quality)


def encode(
    tokenizer: Any, space: CommandSpace, commands: Sequence[Command], texts: Sequence[str], keys: Sequence[str], max_tokens: int
) -> list[TrainingSequence]:
    """Token sequences of the rows with these keys; a text too long for `max_tokens` is cut and then has no end."""
    prompts = encode_prompts(tokenizer, space, commands)
    answers = words_only(tokenizer, [render_answer(t) for t in texts])
    end = [tokenizer.eos_token_id]
    return [TrainingSequence(p, (a + end)[: max(1, max_tokens - len(p))], key) for p, a, key in zip(prompts, answers, keys, strict=True)]


def encode_prompts(tokenizer: Any, space: CommandSpace, commands: Sequence[Command]) -> list[list[int]]:
    """The rendered prompts as token ids. Whatever an intent holds, the control tokens are those of the command alone."""
    around = [space.render(replace(command, intent=SLOT)).partition(f" {SLOT}") for command in commands]
    intents = words_only(tokenizer, [spaced(command.intent) for command in commands])
    before, after = (tokenizer([parts[side] for parts in around], add_special_tokens=False)["input_ids"] for side in (0, 2))
    return [b + intent + a for b, intent, a in zip(before, intents, after, strict=True)]


def words_only(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts in which nothing counts as a control token: what looks like one is spelled out."""
    found: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return found


def training_order(
    rows: pd.DataFrame, space: CommandSpace, recipe: Recipe, tokenizer: Any, options: StudentSettings, *, passes: float, dropout: float
) -> list[TrainingSequence]:
    """The sequences of a whole training run, in order: each pass shuffled by the rows' own keys, then bucketed by length.

    A pass has about as many sequences as there are rows, whatever the recipe: a row of weight w (the mean is 1) is in it w times,
    where the fraction is drawn.

    Args:
        rows: Training rows with row_key, task, intent, text, words, quality, reward.
        options: Of which batch_rows, idea_dropout, swapped_words, seed and max_tokens count here.
        passes: How often a row is seen on average; 1.5 sees every row of an even recipe once and half of them twice.
    """
    commands = dict(zip(rows.row_key, achieved(rows, space), strict=True))
    texts = dict(zip(rows.row_key, rows.text, strict=True))
    swappable = Words.of(rows) if options.swapped_words else None
    ordered: list[str] = []
    rendered: list[tuple[Command, str]] = []
    weights = recipe.weigh(rows)
    copies = dict(zip(rows.row_key, weights / weights.mean(), strict=True))
    wanted = max(1, round(passes * len(rows)))
    turn, seed = 0, options.seed
    while len(ordered) < wanted:
        draws = [(turn, key, *([copy] if copy else [])) for key in copies for copy in range(_whole(copies[key], seed, turn, key))]
        draws = sorted(draws, key=lambda draw: unit_draw("order", seed, *draw))[: wanted - len(ordered)]
        ordered += [key for _, key, *_ in draws]
        for draw in draws:
            command, text = commands[draw[1]], texts[draw[1]]
            if swappable and unit_draw("swap", seed, *draw) < options.swapped_words:
                intent, text = swappable.swap(command.intent, text, seed, *draw)
                command = replace(command, intent=intent)
            rendered.append((drop_out(command, recipe, dropout, options.idea_dropout, seed, *draw), text))
        turn += 1
    chosen, answers = [command for command, _ in rendered], [text for _, text in rendered]
    sequences = encode(tokenizer, space, chosen, answers, ordered, options.max_tokens)
    return _bucketed(sequences, options.batch_rows, seed)


def _whole(copies: float, *draw: Any) -> int:
    """A whole number that is `copies` on average."""
    return int(copies) + (unit_draw("copies", *draw) < copies - int(copies))


def _bucketed(sequences: list[TrainingSequence], batch_rows: int, seed: int) -> list[TrainingSequence]:
    result: list[TrainingSequence] = []
    size = BUCKET_BATCHES * batch_rows
    for start in range(0, len(sequences), size):
        by_length = sorted(sequences[start : start + size], key=lambda s: len(s.prompt) + len(s.answer))
        batches = [by_length[i : i + batch_rows] for i in range(0, len(by_length), batch_rows)]
        last = [batches.pop()] if len(batches[-1]) < batch_rows else []  # a short batch must stay at the end
        batches.sort(key=lambda batch: unit_draw("batch", seed, start, batch[0].answer[:8], len(batch[-1].answer)))
        result += [sequence for batch in batches + last for sequence in batch]
    return result


def collate(features: list[dict[str, list[int]]], pad: int) -> dict[str, Any]:
    """Right-padded tensors of shape [rows, longest]."""
    import torch

    longest = max(len(f["input_ids"]) for f in features)

    def padded(name: str, value: int) -> Any:
        return torch.tensor([f[name] + [value] * (longest - len(f[name])) for f in features])

    mask = [[1] * len(f["input_ids"]) + [0] * (longest - len(f["input_ids"])) for f in features]
    return {"input_ids": padded("input_ids", pad), "labels": padded("labels", IGNORED), "attention_mask": torch.tensor(mask)}
