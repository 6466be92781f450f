"""Ideas that are not made as the built-in ones are: does a student take their words over?

    .venv/bin/python benchmarks/unseen.py [--guidance 4] [--idea-guidance 1.5] [--best-of 8] [--student FOLDER ...]
        [--show] [--out FILE]

Asks students (without --student: udrl and sft as they are in use) for each of forty ideas in each task, at their best quality. Prints
how many content words these ideas have and how many of them the built-in ideas lack; then the reward, the relevance, the share of texts
off their idea, and how many of its content words a text holds; with --show a text for each idea, too. With --best-of each student is asked
once more, and writes so many for a text. Writes JSON.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

from udrl_pipeline import intents, rewards
from udrl_pipeline import settings as settings_module
from udrl_pipeline.cli_generate import student_folder
from udrl_pipeline.commands import Command
from udrl_pipeline.settings import Settings
from udrl_pipeline.student.best_of import BestOf
from udrl_pipeline.student.engines import load_student
from udrl_pipeline.student.recipes import USUAL

#: Below this relevance a text is off its idea.
OFF = 0.5
IDEAS = [
    "robot feeding pigeons in a park", "abandoned train station at dawn", "fox curled up in the snow",
    "astronaut playing chess with a turtle", "school science fair", "dog walking service", "yoga retreat in the mountains",
    "grand opening of a bakery", "charity run for the hospital", "rain on a window", "farmers market vegetables",
    "old hands holding a letter", "surfers at sunset", "kids building a sandcastle", "blacksmith forging a sword",
    "hedgehog under autumn leaves", "violinist in the subway", "wine tasting evening", "plumber business card", "lost parrot notice",
    "graduation party for a nurse", "volcano erupting over the ocean", "monk sweeping a temple courtyard",
    "vintage typewriter and coffee", "zebra crossing at night", "submarine in the deep sea", "tailor measuring a suit",
    "pumpkin carving contest", "menu for a ramen shop", "swimming lessons for toddlers", "firefighters after work",
    "glacier seen from a plane", "kitten sleeping in a teacup", "welder with sparks", "bamboo forest path", "garage sale on saturday",
    "opera night invitation", "mushroom foraging guide", "scarecrow in a cornfield", "ballet shoes on a chair",
]  # fmt: skip


def ask(folder: Path, settings: Settings, scorer: rewards.Scorer, weights: dict[str, float | None], best_of: int) -> pd.DataFrame:
    """One text per idea and task, with relevance, reward and kept (the share of the idea's content words that it holds)."""
    student = load_student(folder)
    commands = [Command(task, idea, quality=student.space.best.get(task)) for task in settings.tasks.names for idea in IDEAS]
    made = BestOf(student, best_of, settings).generate(commands, **settings.evaluation.sampling, **weights)
    asked = [(command.task, command.intent, text.text) for command, text in zip(commands, made, strict=True)]
    texts = pd.DataFrame(asked, columns=["task", "intent", "text"])
    texts = rewards.label(texts.assign(relevance=scorer.relevance(texts.intent.tolist(), texts.text.tolist())), settings.rewards)
    return texts.assign(kept=[kept(intent, text) for intent, text in zip(texts.intent, texts.text, strict=True)])


def kept(intent: str, text: str) -> float:
    wanted = set(rewards.content_words(intent))
    return len(wanted & set(rewards.content_words(text))) / len(wanted)


def vocabulary(settings: Settings) -> dict[str, int]:
    """How many content words the built-in ideas have, how many the forty have, and how many of these stand in no built-in idea."""
    both = intents.builtin(settings.intents), IDEAS
    builtin, forty = ({word for idea in ideas for word in rewards.content_words(idea)} for ideas in both)
    return {"builtin": len(builtin), "forty": len(forty), "new": len(forty - builtin)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guidance", type=float, help="of the quality (default: the student's own)")
    parser.add_argument("--idea-guidance", type=float, help="of the idea (default: the student's own)")
    parser.add_argument("--best-of", type=int, help="also write so many for each text, and keep the one of the highest reward")
    parser.add_argument("--student", type=Path, action="append", help="a student's folder; repeatable")
    parser.add_argument("--show", action="store_true", help="print a text for each idea")
    parser.add_argument("--out", type=Path, default=Path("docs/results/unseen.json"))
    arguments = parser.parse_args()
    settings = settings_module.load()
    scorer = rewards.Scorer(settings)
    weights = {"guidance": arguments.guidance, "idea_guidance": arguments.idea_guidance}
    found: dict[str, Any] = {}
    words = vocabulary(settings)
    print("content words: {builtin} in the built-in ideas, {forty} in the forty, {new} of them in no built-in one\n".format(**words))
    print(f"{'student':20} {'reward':>7} {'relevance':>10} {'off idea':>9} {'words kept':>11}")
    folders = {path.name: path for path in arguments.student or ()} or {recipe: student_folder(recipe, settings) for recipe in USUAL}
    numbers = [1, *filter(None, [arguments.best_of])]
    for name, folder, best_of in ((name, folder, best_of) for name, folder in folders.items() for best_of in numbers):
        name += f", best of {best_of}" * (best_of > 1)
        texts = ask(folder, settings, scorer, weights, best_of)
        off = float((texts.relevance < OFF).mean())
        means = {"reward": texts.reward.mean(), "relevance": texts.relevance.mean(), "off_idea": off, "kept": texts.kept.mean()}
        found[name] = {"texts": len(texts), **{key: round(float(value), 4) for key, value in means.items()}}
        print(f"{name:20} {means['reward']:7.3f} {means['relevance']:10.3f} {off:9.1%} {means['kept']:11.1%}", flush=True)
        if arguments.show:
            shown = [texts[texts.task == settings.tasks.names[n % len(settings.tasks.names)]].iloc[n] for n in range(len(IDEAS))]
            print("\n".join(f"    {text.task}: {text.intent} -> {text.text}" for text in shown))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({**weights, "content_words": words, "students": found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
