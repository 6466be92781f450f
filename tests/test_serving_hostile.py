"""What nobody would send: schemathesis makes requests from the server's own schema, those that it allows and those that it does not."""

from collections import Counter
from collections.abc import Callable

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from schemathesis.checks import load_all_checks, positive_data_acceptance
from schemathesis.schemas import APIOperation

from serving_fake import running
from udrl_pipeline.settings import Settings

Load = Callable[..., Settings]
KEY = {"Authorization": "Bearer s3cret"}
OPERATIONS = {"GET /health", "GET /ready", "GET /metrics", "GET /student", "POST /generate", "POST /v1/completions", "GET /v1/models",
              "GET /v1/models/{model}"}  # fmt: skip


def ask_anything(settings: Settings, cases: int) -> Counter[str]:
    """Send so many requests, most of them for texts; every check of schemathesis must hold. Returns how often each was answered how."""
    told: Counter[str] = Counter()
    with running(settings, key="s3cret") as (_, _, url):
        load_all_checks()
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        operations: dict[str, APIOperation] = {found.ok().label: found.ok() for found in schema.get_all_operations()}
        assert set(operations) == OPERATIONS
        names = [*sorted(OPERATIONS), *["POST /generate", "POST /v1/completions"] * 4]
        wrong = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
        right = wrong[:1]  # where there is nothing to fill in, nothing can be wrong
        chosen = st.sampled_from([(name, mode) for name in names for mode in (wrong if name.startswith("POST") else right)])

        @hypothesis_settings(max_examples=cases, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
        @given(case=chosen.flatmap(lambda made: operations[made[0]].as_strategy(generation_mode=made[1])))
        def asked(case: schemathesis.Case) -> None:
            answer = case.call(headers=KEY, timeout=10)
            told[f"{case.operation.label} {answer.status_code}"] += 1
            # an idea that the schema allows may be none all the same, as one without a letter
            case.validate_response(answer, excluded_checks=[positive_data_acceptance], headers=KEY)

        asked()
    return told


def test_no_request_breaks_the_server(settings: Settings) -> None:
    told = ask_anything(settings, 50)
    assert sum(told.values()) >= 50
    assert {status for status in (line.split()[-1] for line in told) if status.startswith("5")} == set()


@pytest.mark.slow
def test_two_thousand_requests_break_nothing(load: Load) -> None:
    told = ask_anything(load({"serve.max_body_bytes": 2**24}), 2000)
    print(dict(sorted(told.items())))
    assert sum(told.values()) >= 2000
    assert {line.split()[-1] for line in told} == {"200", "400", "401", "404", "422"}
    assert told["POST /generate 200"] > 20
    assert told["POST /generate 422"] > 20
