"""What a client is told when it does not get pictures: OpenAI's error envelope, with the field that is to blame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    499: "cancelled",
}


_DETAILED = ("/api/", "/sdapi/")
"""Routes whose clients look for `detail`, as FastAPI's own errors have it."""


MOST_SAID = 20
"""Sentences of one answer: a body of some megabytes can be wrong in a hundred thousand ways."""


class ApiError(Exception):
    """An answer other than pictures.

    Attributes:
        status: HTTP status.
        code: A short name of the reason, which metrics count by, e.g. "queue_full".
        param: The field of the request that is to blame, or None.
        headers: Of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.headers = dict(headers or {})

    def body(self, path: str = "") -> dict[str, Any]:
        """The JSON body, as OpenAI's clients read it, and those of other APIs.

        Args:
            path: The route, by whose beginning an API is known.
        """
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        detail = {"detail": str(self)} if path.startswith(_DETAILED) else {}
        return detail | {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A request that can never be answered as it stands."""
    return ApiError(400, code, message, param=param)


def duplicate_id(name: str) -> ApiError:
    """A request with the id of another one that is not done."""
    return ApiError(409, "duplicate_id", f"a request with the id {name} is not done yet; choose another")


def together(sentences: Sequence[str], count: int | None = None) -> str:
    """All that is wrong, in one message: the first sentences, and how many more there are.

    Args:
        sentences: What is wrong.
        count: How many there are, where only the first ones were made.
    """
    more = (len(sentences) if count is None else count) - MOST_SAID
    return "; ".join([*sentences[:MOST_SAID], *([f"and {more} more"] if more > 0 else [])])


def over_limit(param: str, given: object, allowed: object, unit: str) -> ApiError:
    """A request beyond what this server allows."""
    return bad_request(
        f"{param}: this server allows at most {allowed} {unit}, got {given}; ask for less, or have the limit raised",
        param,
        "limit_exceeded",
    )
