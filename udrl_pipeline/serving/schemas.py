"""What a request may hold and what an answer holds. Types are strict, and an unknown field is an error."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from udrl_pipeline.student.decoding import MOST_GUIDANCE

#: What no setting can widen; the settings `serve` and `intents.max_words` narrow it.
MOST_TEXTS, MOST_WORDS, MOST_CHARACTERS = 1000, 400, 4000

Idea = Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS)]
Task = Annotated[
    str | None, Field(max_length=31, description="What to write; `GET /student` lists them. Default: the first of params.yaml")
]
Length = Annotated[
    Annotated[int, Field(ge=1, le=MOST_WORDS)] | Literal["short", "medium", "long", "any"] | None,
    Field(description="Words; what the student does not cover is clamped, with a warning. Default: left to the student"),
]
Quality = Annotated[
    Annotated[int, Field(ge=1, le=20)] | Literal["best", "any"], Field(description="1 to the student's highest, `best` (what won) or `any`")
]
GuidanceWeight = Annotated[
    float | None, Field(ge=0, le=MOST_GUIDANCE, description="How hard the quality is pressed; 1 only asks. Default: what won")
]
LengthGuidance = Annotated[float, Field(ge=0, le=MOST_GUIDANCE, description="How hard the length is pressed")]
IdeaGuidance = Annotated[
    float | None, Field(ge=0, le=MOST_GUIDANCE, description="How hard the idea is pressed; 1 is as trained. Default: the student's own")
]
Number = Annotated[int, Field(ge=1, le=MOST_TEXTS, description="Texts per idea")]
Seed = Annotated[
    int | None, Field(ge=-(2**63), le=2**63 - 1, description="The same seed gives the same texts. Default: another one each time")
]
Temperature = Annotated[float | None, Field(ge=0, le=2, description="0 is greedy. Default: evaluation.temperature")]
TopP = Annotated[float | None, Field(gt=0, le=1, description="Default: evaluation.top_p")]
Nothing = Annotated[float | None, Field(ge=0, le=0, description="Not offered: 0 or nothing")]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Wish(_Asked):
    """What is asked of texts, in whatever words the rest of the request is."""

    task: Task = None
    length: Length = None
    quality: Quality = "best"
    guidance: GuidanceWeight = None
    length_guidance: LengthGuidance = 1.0
    idea_guidance: IdeaGuidance = None
    seed: Seed = None
    temperature: Temperature = None
    top_p: TopP = None


class GenerateRequest(Wish):
    """An idea, and what is asked of the texts about it."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"idea": "lighthouse in a storm", "task": "image", "length": 18, "quality": "best", "n": 2}]}
    )

    idea: Idea
    n: Number = 1


class Asked(BaseModel):
    """The command that was really given, after clamping."""

    length: int | None = Field(description="Words; none: left to the student")
    quality: int | None
    guidance: float = Field(description="How hard the quality was pressed; 1 only asks")
    length_guidance: float
    idea_guidance: float


class Text(BaseModel):
    """A text, and what it achieved."""

    text: str
    words: int
    tokens: int
    finished: bool = Field(description="Whether the student ended it; else it was cut off")
    reward: float | None = Field(description="None unless the setting serve.scores is on")


class GenerateAnswer(BaseModel):
    task: str
    idea: str
    recipe: str
    version: str = Field(description="The student that wrote: `udrl audit trace VERSION` tells what it was made from")
    seed: int
    asked: Asked
    texts: list[Text]
    warnings: list[str]


class TaskInfo(BaseModel):
    """What a student can be asked for in a task."""

    task: str
    covered: tuple[int, int] = Field(description="Shortest and longest length (words)")
    named: dict[str, int] = Field(description="What the named lengths mean (words)")
    best: int | None = Field(description="The quality that won; none: the student obeys neither length nor quality")
    guidance: float


class StudentInfo(BaseModel):
    """The student that answers now, and the limits of a request."""

    recipe: str
    version: str
    engine: str = Field(description="With what it writes: export or transformers")
    tasks: list[TaskInfo] = Field(description="The default first")
    qualities: int = Field(description="The highest quality")
    idea_guidance: float
    max_texts: int
    max_words: int
    max_idea_words: int
    scores: bool = Field(description="Whether the reward of each text is told")


class Status(BaseModel):
    status: Literal["ok"] = "ok"


class StreamOptions(_Asked):
    include_usage: bool = False


class CompletionRequest(Wish):
    """OpenAI's request, less what a student of this kind cannot do, and with the commands that it obeys (an OpenAI client sends
    those as `extra_body`)."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "udrl", "prompt": "lighthouse in a storm", "n": 2, "task": "image", "length": 18}]}
    )

    model: Annotated[str, Field(min_length=1, max_length=100, description="One of `GET /v1/models`; `RECIPE:TASK` names the task, too")]
    prompt: Annotated[Idea | Annotated[list[Idea], Field(min_length=1, max_length=MOST_TEXTS)], Field(description="An idea, or several")]
    n: Number | None = None
    max_tokens: Annotated[int | None, Field(ge=1, le=4096, description="Default: room for the length that is asked")] = None
    stop: Annotated[
        Annotated[str, Field(min_length=1, max_length=200)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=4)]
        | None,
        Field(description="The text ends before the first of these"),
    ] = None
    stream: Annotated[bool | None, Field(description="As server-sent events; each text comes whole, when it is written")] = None
    stream_options: StreamOptions | None = None
    user: Annotated[str | None, Field(max_length=1000, description="Not used")] = None
    echo: Annotated[bool | None, Field(description="Put the idea before its text")] = None
    best_of: Annotated[int | None, Field(ge=1, le=1, description="Not offered: 1 or nothing")] = None
    presence_penalty: Nothing = None
    frequency_penalty: Nothing = None
    logprobs: Annotated[None, Field(description="Not offered")] = None
    logit_bias: Annotated[dict[str, float] | None, Field(max_length=0, description="Not offered")] = None
    suffix: Annotated[str | None, Field(max_length=0, description="Not offered")] = None


class Choice(BaseModel):
    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None
    logprobs: None = None


class TokenCount(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: TokenCount | None = None
    system_fingerprint: str = Field(description="The version of the student that wrote")


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "udrl_pipeline"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]
