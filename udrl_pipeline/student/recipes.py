"""How a student is trained. All recipes see the same rows with the same budget; a new one is one entry."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Recipe:
    name: str
    description: str
    #: whether the length and quality that a row achieved are part of its prompt
    commanded: bool


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("udrl", "Upside-down RL: every row, commanded with the length and quality that it achieved", commanded=True),
        Recipe("sft", "Supervised fine-tuning: every row, commanded with the task alone", commanded=False),
    )
}
