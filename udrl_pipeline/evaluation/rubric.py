"""The fourth judge: a chat model that compares each text with the teacher's for the same idea, by a fixed rubric.

Which of the two is shown first is drawn per pair, because chat models favour a place; a tie is allowed. Any engine and any model
can judge (`evaluation.rubric_judge`); a model too small to follow the rubric shows itself by the share of verdicts for the first
place, which stands in the report beside the result.
"""

import re
from collections.abc import Sequence

import pandas as pd

from udrl_pipeline.errors import TeacherError
from udrl_pipeline.tasks import Task
from udrl_pipeline.teacher import Engine, Refusal, Request
from udrl_pipeline.versioning import unit_draw

RUBRIC = """You compare two answers to the same idea. What both were asked for: {wanted}

The better answer, in this order of weight,
1. is about the idea, and about nothing that contradicts it,
2. adds concrete detail that a reader could use,
3. is one finished text without repetition or filler.

Idea: {intent}
Answer A: {first}
Answer B: {second}

Which answer is better? Reply with one word: A, B or tie."""
VERDICT = re.compile(r"\b(A|B|tie)\b")


def compare(pairs: pd.DataFrame, tasks: dict[str, Task], engine: Engine) -> tuple[pd.Series, dict[str, float]]:
    """How often each text is preferred to the teacher's.

    Args:
        pairs: task, intent, intent_key, text, and teacher_text for the same intent; distinct by these.

    Returns:
        One number per pair (1 the text is preferred, 0.5 a tie, 0 the teacher's is; NaN where the judge gave no verdict), and
        {verdicts, no_verdict, ties, first_place}: counts, and shares of the verdicts that were a tie, and of the others that
        fell on the answer shown first (0.5 if the place does not matter).

    Raises:
        TeacherError: The judge refused every request.
    """
    drawn = zip(pairs.task, pairs.intent_key, pairs.text, strict=True)
    swapped = [unit_draw("first", *pair) < 0.5 for pair in drawn]
    replies = engine.generate(
        [
            _question(tasks[pair.task], pair.intent, *([pair.teacher_text, pair.text] if swap else [pair.text, pair.teacher_text]))
            for pair, swap in zip(pairs.itertuples(), swapped, strict=True)
        ]
    )
    refused = [reply for reply in replies if isinstance(reply, Refusal)]
    if replies and len(refused) == len(replies):
        raise TeacherError(f"refused every request ({refused[0].reason})", where="evaluation.rubric_judge", remedy="check its model")
    places = [None if isinstance(reply, Refusal) else verdict(reply.text) for reply in replies]
    return pd.Series([_preferred(place, swap) for place, swap in zip(places, swapped, strict=True)], pairs.index, dtype=float), _tally(
        places
    )


def verdict(reply: str) -> str | None:
    """`A`, `B` or `tie`: the first of them that stands in the reply as a word; None if none does."""
    found = VERDICT.search(reply)
    return found[1] if found else None


def _question(task: Task, intent: str, first: str, second: str) -> Request:
    content = RUBRIC.format(wanted=task.label, intent=intent, first=first, second=second)
    return Request([{"role": "user", "content": content}], max_tokens=8, temperature=0.0, top_p=1.0, repetition_penalty=1.0)


def _preferred(place: str | None, swapped: bool) -> float:
    if place is None:
        return float("nan")
    return 0.5 if place == "tie" else float((place == "B") == swapped)


def _tally(places: Sequence[str | None]) -> dict[str, float]:
    given = [place for place in places if place]
    decided = [place for place in given if place != "tie"]
    return {
        "verdicts": len(given),
        "no_verdict": len(places) - len(given),
        "ties": round(1 - len(decided) / len(given), 4) if given else 0.0,
        "first_place": round(decided.count("A") / len(decided), 4) if decided else 0.5,
    }
