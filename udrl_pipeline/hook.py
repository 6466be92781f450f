"""The user's own hook for a run that failed: a command or a web address, named by the environment.

Both are told the same: a JSON object, on the command's standard input or as the body of a POST. Neither the command nor the
address is ever logged, because both may hold a key; nor is what they answer.
"""

import http.client
import json
import os
import shlex
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from udrl_pipeline.errors import HookError

COMMAND_ENV = "UDRL_ON_FAILURE_COMMAND"
WEBHOOK_ENV = "UDRL_ON_FAILURE_WEBHOOK"
TIMEOUT_S = 30.0


def tell(message: Mapping[str, Any], environment: Mapping[str, str] = os.environ, timeout_s: float = TIMEOUT_S) -> list[str]:
    """Call what the environment names, both if it names both. Returns what was called, in words that hold no secret.

    Raises:
        HookError: A hook cannot be called, says no, or takes longer than `timeout_s` seconds. The other one was called all the same.
    """
    called, failed = [], []
    for name, call in ((COMMAND_ENV, _run), (WEBHOOK_ENV, _post)):
        if target := environment.get(name, "").strip():
            try:
                called.append(f"{name}: {call(target, json.dumps(message), timeout_s)}")
            except HookError as error:
                failed.append(error)
    if failed:
        raise failed[0]
    return called


def _run(command: str, message: str, timeout_s: float) -> str:
    """Run a command without a shell, so that nothing in the message or in it is expanded."""
    try:
        arguments = shlex.split(command)
    except ValueError as error:
        raise _error(COMMAND_ENV, f"cannot be taken apart: {error}") from None
    nowhere = subprocess.DEVNULL
    try:
        with subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere, text=True, start_new_session=True
        ) as process:
            try:
                process.communicate(message, timeout=timeout_s)
            except BaseException as error:
                os.killpg(process.pid, signal.SIGKILL)  # and what it has started
                if isinstance(error, subprocess.TimeoutExpired):
                    raise _error(COMMAND_ENV, f"took longer than {timeout_s:g} s and was ended") from None
                raise
    except OSError as error:
        raise _error(COMMAND_ENV, f"cannot be started: {error.strerror}") from None
    if process.returncode:
        raise _error(COMMAND_ENV, f"ended with exit code {process.returncode}")
    return "exit code 0"


def _post(address: str, message: str, timeout_s: float) -> str:
    if not address.startswith(("http://", "https://")):
        raise _error(WEBHOOK_ENV, "is no http:// or https:// address")
    request = urllib.request.Request(address, message.encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return f"answered {answer.status}"
    except urllib.error.HTTPError as error:
        raise _error(WEBHOOK_ENV, f"answered {error.code}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _error(WEBHOOK_ENV, f"does not answer ({type(error).__name__})") from None  # its text may hold the address


def _error(name: str, what: str) -> HookError:
    return HookError(f"the hook {what}", where=name, remedy="correct it in the environment of the code location, and try it by hand")
