"""The one shape in which a server says no: what an OpenAI client reads, and what every error of this project tells."""

from typing import Any

from pydantic import BaseModel, Field

from udrl_pipeline.characters import printable
from udrl_pipeline.errors import UdrlError

#: Seconds after which a client may ask again when nothing better is known.
SOON_S = 1


class ErrorDetail(BaseModel):
    """What went wrong, where, why, and what to do about it. `message`, `type` and `param` are what OpenAI's clients look for."""

    code: str = Field(description="For programs: stays the same when the words change")
    where: str = Field(description="The field, header or part that is at fault")
    why: str = Field(description="What is wrong")
    remedy: str = Field(description="What to do")
    message: str = Field(description="where, why and remedy in one text")
    type: str = Field(description="invalid_request_error, authentication_error, rate_limit_error or server_error")
    param: str | None = Field(description="The same as `where`")


class ErrorBody(BaseModel):
    """Every answer that is no success has this shape."""

    error: ErrorDetail


class Refused(UdrlError):
    """A request that is not answered with texts.

    Args:
        status: The HTTP status.
        code: For programs; one of `STATUSES`.
        retry_after: Seconds after which asking again makes sense; None where it makes none.
    """

    def __init__(self, code: str, what: str, *, where: str, remedy: str, retry_after: int | None = None) -> None:
        super().__init__(printable(what), where=printable(where), remedy=printable(remedy))
        self.code, self.status, self.retry_after = code, STATUSES[code], retry_after

    @property
    def headers(self) -> dict[str, str]:
        found = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return found | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})

    def body(self) -> dict[str, Any]:
        detail = ErrorDetail(
            code=self.code, where=self.where, why=self.what, remedy=self.remedy, message=f"{self.where}: {self.what} ({self.remedy})",
            type=_TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error"), param=self.where or None,
        )  # fmt: skip
        return ErrorBody(error=detail).model_dump()


#: Every code, and the HTTP status that it goes with.
STATUSES = {
    "malformed": 400, "unauthorized": 401, "not_found": 404, "model_not_found": 404, "method_not_allowed": 405, "too_slow": 408,
    "too_large": 413, "invalid_request": 422, "unusable_idea": 422, "overloaded": 429, "client_left": 499, "internal": 500,
    "no_student": 503, "shutting_down": 503, "timeout": 504,
}  # fmt: skip
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


def internal() -> Refused:
    """A mistake of the program; what it was stands in the log, for it may tell more than a client should know."""
    return Refused("internal", "the server failed", where="server", remedy="the operator finds the reason in the server's log")


def shutting_down() -> Refused:
    return Refused("shutting_down", "the server is shutting down", where="server", remedy="ask again", retry_after=SOON_S)
