"""What a request is refused with, in the form of OpenAI's API."""

from typing import Any


class RequestError(Exception):
    """A request that cannot be answered.

    Args:
        status: of HTTP.
        message: one line for whoever sent the request.
        param: the member of the request that is to blame.
        code: by which programs tell such errors apart.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refusal(message: str, param: str | None = "messages", code: str = "invalid_value") -> RequestError:
    """A request that asks for what cannot be."""
    return RequestError(400, message, param, code)
