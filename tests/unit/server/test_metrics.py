"""The metrics page: names, label sets, and what promtool thinks of it."""

import re
import shutil
import subprocess

import pytest

from tessera.keystore.errors import REASONS
from tessera.server.metrics import PHASES, Metrics

FAMILIES = {
    "tessera_requests_total",
    "tessera_request_seconds",
    "tessera_phase_seconds",
    "tessera_batch_samples",
    "tessera_queue_samples",
    "tessera_refusals_total",
    "tessera_ledger_commits_total",
    "tessera_ledger_commit_seconds",
    "tessera_ledger_records_total",
    "tessera_samples_total",
    "tessera_variant_loaded",
    "tessera_sessions",
    "tessera_store_sealed",
    "tessera_certificate_end_timestamp_seconds",
    "tessera_build_info",
}


def used() -> Metrics:
    """Return metrics with something in every family."""
    metrics = Metrics(version="1.2.3")
    metrics.request("inference.GRPCInferenceService/ModelInfer", "OK", 0.002)
    metrics.refusal("quota-exhausted")
    for phase in PHASES:
        getattr(metrics, phase).observe(0.001)
    model = metrics.model("digits")
    model.batch_samples.observe(4)
    model.samples(1, 4)
    model.loaded(1, True)
    model.watch_queue(lambda: 3)
    metrics.ledger_commits.inc()
    metrics.ledger_records.inc(4)
    metrics.ledger_commit_seconds.observe(0.003)
    metrics.watch_sessions(lambda: 2.0)
    metrics.watch_sealed(lambda: False)
    return metrics


def page(metrics: Metrics) -> str:
    """Return the page as text."""
    return metrics.render()[0].decode()


def test_every_family_of_the_contract_is_there_and_no_other() -> None:
    """The page holds exactly the families that docs and dashboards name."""
    assert set(re.findall(r"^# TYPE (\S+)", page(used()), re.MULTILINE)) == FAMILIES


def test_names_follow_the_naming_rules() -> None:
    """Our own check of Prometheus's rules: prefix, snake case, base units, `_total` for counters and nothing else."""
    text = page(used())
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)", text, re.MULTILINE):
        assert re.fullmatch(r"tessera_[a-z]+(_[a-z]+)*", name)
        assert name.endswith("_total") == (kind == "counter")
        assert not re.search(r"_(ms|us|ns|milli|micro|minutes|hours|kb|mb|histogram|gauge|counter)(_|$)", name)
        assert re.search(rf"^# HELP {name} \S", text, re.MULTILINE)
    assert set(re.findall(r"[{,](\w+)=", text)) <= {"rpc", "code", "phase", "model", "tier", "reason", "le", "version"}


def test_promtool_accepts_the_page() -> None:
    """`promtool check metrics` exits 0 without a word."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on PATH (Debian package prometheus)")
    done = subprocess.run([promtool, "check", "metrics"], input=used().render()[0], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_openmetrics_is_given_to_who_asks_for_it() -> None:
    """The Accept header chooses the format; OpenMetrics ends in its end mark."""
    body, content_type = used().render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_refusals_have_a_bounded_label_set() -> None:
    """A reason that is not in the table is counted as internal, so nobody can grow the page."""
    metrics = Metrics()
    for reason in [*REASONS, "made-up-1", "made-up-2"]:
        metrics.refusal(reason)
    found = re.findall(r'tessera_refusals_total\{reason="([^"]+)"\} (\S+)', page(metrics))
    assert {reason for reason, _ in found} == set(REASONS)
    assert dict(found)["internal"] == "3.0"


def test_every_refusal_is_on_the_page_before_the_first() -> None:
    """Prometheus' `increase` needs a series to start from: with none, the first full disk would raise no alert."""
    found = dict(re.findall(r'tessera_refusals_total\{reason="([^"]+)"\} (\S+)', page(Metrics())))
    assert found == dict.fromkeys(REASONS, "0.0")


def test_the_queue_is_read_at_the_scrape_and_can_be_forgotten() -> None:
    """The gauge sums the watched queues of a model and drops one that is gone."""
    metrics = Metrics()
    depths = [lambda: 3, lambda: 4]
    for depth in depths:
        metrics.model("digits").watch_queue(depth)
    assert 'tessera_queue_samples{model="digits"} 7.0' in page(metrics)
    metrics.model("digits").forget_queue(depths[0])
    assert 'tessera_queue_samples{model="digits"} 4.0' in page(metrics)


def test_two_appliances_do_not_share_counters() -> None:
    """Each has a registry of its own."""
    first, second = Metrics(), Metrics()
    first.ledger_commits.inc()
    assert "tessera_ledger_commits_total 1.0" in page(first)
    assert "tessera_ledger_commits_total 0.0" in page(second)
